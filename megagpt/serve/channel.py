"""Broadcasts commands from the first rank to the others."""

import datetime
import json
from typing import Any

import torch
import torch.distributed as dist

FRAME = 4096
"""Bytes of the first broadcast of a message; a longer message needs a second broadcast."""
HEADER = 8
"""Bytes of the field that holds a message's length."""


class Channel:
    """Broadcasts JSON values from rank 0 through CPU memory, with gloo; with one rank it returns them unchanged."""

    def __init__(self, timeout: datetime.timedelta) -> None:
        """timeout: longest time that a rank waits for the others. Collective."""
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
