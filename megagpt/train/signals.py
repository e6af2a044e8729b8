"""Turns SIGTERM, SIGINT and SIGUSR1 into a wish to stop that all ranks agree on at the next step boundary."""

import logging
import signal
from types import FrameType

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopSignal:
    """A context in which the signals only set a flag. A second SIGINT interrupts at once, as users expect."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
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
        if self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def agreed(self) -> bool:
        """Whether any rank has received a signal. Collective: all ranks get the same answer."""
        flag = torch.tensor([int(self.received is not None)])
        if self._group is not None:
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag)
