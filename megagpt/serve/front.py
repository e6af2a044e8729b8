"""The process that listens, as the process with the models sees it.

HTTP and JSON have a process of their own, because in one process the threads would wait for the interpreter's lock.
"""

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from types import FrameType
from typing import TYPE_CHECKING

from megagpt.errors import MegaGPTError
from megagpt.serve.bounds import Bounds
from megagpt.serve.interface import Limits
from megagpt.serve.server import LAST_SECONDS

if TYPE_CHECKING:
    from megagpt.serve.host import Card


@dataclass(frozen=True)
class FrontSettings:
    """How the front listens, see `server.build_server`."""

    key: str | None
    hosts: tuple[str, ...]
    bounds: Bounds
    limits: Limits
    grace: float


class Front:
    """Starts `listener` and ends it."""

    def __init__(self, bound: socket.socket, settings: FrontSettings) -> None:
        """Start it; it listens on `bound` after `open`."""
        self.connection, theirs = Pipe()
        self._grace = settings.grace
        self._passed_on: int | None = None
        self._opened = False
        # Ctrl-C in a terminal reaches every process of a session. This one has a session of its own, see `pass_on`.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "megagpt.serve.listener", str(theirs.fileno()), str(bound.fileno())],
            pass_fds=(theirs.fileno(), bound.fileno()),
            start_new_session=True,
        )
        theirs.close()
        bound.close()
        self._send(settings)

    def open(self, cards: "Sequence[Card]") -> None:
        """Let it listen."""
        self._opened = True
        self._send(cards)

    def pass_on(self, number: int, _: FrameType | None = None) -> None:
        """Pass a signal on to the process, which then ends the models' loop."""
        self._passed_on = number
        self._process.send_signal(number)

    def close(self) -> int:
        """End it, with some seconds to finish its answers; returns its exit code."""
        self.connection.close()
        try:
            return self._process.wait(self._grace + 2 * LAST_SECONDS if self._opened else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def check(self, code: int) -> None:
        """Raises MegaGPTError for an exit code that neither success nor a signal of ours explains."""
        if code not in (0, -(self._passed_on or 0)):
            how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            raise MegaGPTError(f"the process that listens ended with {how}: see the messages above, then start again")

    def _send(self, message: object) -> None:
        with suppress(OSError):  # it has ended, which `check` reports
            self.connection.send(message)
