"""How the first rank tells the others what to do."""

import datetime
import json
from typing import Any

import torch
import torch.distributed as dist

FRAME = 4096
"""Bytes of a message that go at once; what is longer takes a second one."""
HEADER = 8
"""Bytes of a message's length."""


class Channel:
    """Broadcasts JSON values from rank 0 over gloo, so that nothing depends on a device; alone it passes them on."""

    def __init__(self, timeout: datetime.timedelta) -> None:
        """timeout: how long a rank waits for another. Collective."""
        self.ranks = dist.get_world_size()
        self._first = dist.get_rank() == 0
        self._group = dist.new_group(backend="gloo", timeout=timeout) if self.ranks > 1 else None

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Raises RuntimeError when contact with a rank is lost."""
        if self._group is None:
            return value
        frame = torch.zeros(FRAME, dtype=torch.uint8)
        data = json.dumps(value).encode() if self._first else b""
        if self._first:
            start = len(data).to_bytes(HEADER) + data[: FRAME - HEADER]
            frame[: len(start)] = torch.frombuffer(bytearray(start), dtype=torch.uint8)
        dist.broadcast(frame, src=0, group=self._group)
        received = frame.numpy().tobytes()
        length = int.from_bytes(received[:HEADER])
        if length > FRAME - HEADER:
            rest = torch.zeros(length - FRAME + HEADER, dtype=torch.uint8)
            if self._first:
                rest.copy_(torch.frombuffer(bytearray(data[FRAME - HEADER :]), dtype=torch.uint8))
            dist.broadcast(rest, src=0, group=self._group)
            received += rest.numpy().tobytes()
        return json.loads(received[HEADER : HEADER + length])
