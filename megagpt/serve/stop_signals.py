"""SIGTERM and SIGINT in the processes of a server."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stop_signals(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Give SIGTERM and SIGINT to `handler`, and to their earlier handlers afterwards. Only in the main thread."""
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, earlier in old.items():
            signal.signal(number, earlier)
