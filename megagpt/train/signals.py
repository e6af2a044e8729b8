"""Turns SIGTERM, SIGINT and SIGUSR1 into a wish to stop, which all ranks receive with the result of a step."""

import logging
import signal
import time
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SAME_WISH_SECONDS = 2.0
"""Signals within this time count as one: a Ctrl-C reaches a rank twice, from the terminal and from torchrun."""


class StopSignal:
    """A context in which the signals only set a flag. A second Ctrl-C raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._received_at = 0.0
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

    def was_received(self) -> bool:
        """Whether this rank has received a signal. See `Engine.wishes_stop`."""
        return self.received is not None
