"""Turns SIGTERM, SIGINT and SIGUSR1 into a wish to stop that all ranks agree on at the next step boundary."""

import logging
import signal
import time
from types import FrameType

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SAME_WISH_SECONDS = 2.0
"""A Ctrl-C reaches a rank twice, from the terminal and again from torchrun: what comes this soon is no second wish."""


class StopSignal:
    """A context in which the signals only set a flag. A second Ctrl-C interrupts at once, as users expect."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        # A CPU group: agreeing must not wait for the GPU.
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignal":
        self._previous = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is None:
            self._received_at = now
        elif number == signal.SIGINT and now - self._received_at > SAME_WISH_SECONDS:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether any rank has received a signal. Collective: all ranks get the same answer."""
        flag = torch.tensor([int(self.received is not None)])
        if self._group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)
