"""The loop that runs a server's models on every rank. Rank 0 gets the requests from a connection."""

import datetime
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Protocol

from megagpt.errors import DistributedError, MegaGPTError
from megagpt.parallel import launch
from megagpt.serve.channel import Channel
from megagpt.serve.interface import Progress

HEARTBEAT_SECONDS = 10.0
"""Longest time between two messages to the other ranks. It keeps them from timing out, and reveals dead ranks."""


class Runner(Protocol):
    """A model on this rank. Every rank gets the same calls in the same order, so that collectives match."""

    busy: bool
    """Whether there is work."""
    progress: Progress

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """Start request `number`, or stop it if `verb` is "stop"; `details` are JSON values."""
        ...

    def work(self) -> Iterable[tuple[int, Any]]:
        """Do one step of work; returns (request number, result) pairs."""
        ...


class ModelLoop:
    """Runs models in turn, one step each, while any has work. New requests are read between the steps.

    `model_client.ModelClient` is at the other end of rank 0's connection. It sends (model, verb, number, details), and
    None at the end. It gets (model, Progress, results) after each step, or the exception that ended the loop.
    """

    def __init__(self, runners: Sequence[Runner], timeout: datetime.timedelta) -> None:
        """timeout: longest time that ranks wait for each other. Collective."""
        self.runners, self.channel = runners, Channel(timeout)
        self._connection: Connection | None = None

    def run(self, connection: Connection | None) -> None:
        """Run until the client ends the loop or disappears, then close the connection, which only rank 0 has.

        Raises DistributedError when contact with a rank is lost, and what a model raises.
        """
        self._connection = connection
        try:
            self._run()
        except Exception as error:
            self._send(error if isinstance(error, MegaGPTError) else MegaGPTError(f"the model failed: {error}"))
            raise
        finally:
            if connection is not None:
                connection.close()

    def _run(self) -> None:
        try:
            while (commands := self.channel.broadcast(self._commands())) is not None:
                for model, verb, number, details in commands:
                    self.runners[model].obey(verb, number, details)
                for number, runner in enumerate(self.runners):
                    if runner.busy:
                        results = list(runner.work())
                        self._send((number, runner.progress, results))
        except Exception as error:
            if self.channel.ranks > 1 and launch.is_lost_contact(error):
                raise DistributedError(f"contact with another rank was lost: {error}") from error
            raise

    def _commands(self) -> list[tuple] | None:
        """On rank 0 the new commands, waiting for one if no model is busy; None ends the loop. Empty on other ranks."""
        if self._connection is None:
            return []
        found: list[tuple] = []
        seconds = 0 if any(runner.busy for runner in self.runners) else self._longest_wait
        try:
            while self._connection.poll(seconds):
                command = self._connection.recv()
                if command is None:
                    return None
                found.append(command)
                seconds = 0
        except (EOFError, OSError):  # the client is gone
            return None
        return found

    @property
    def _longest_wait(self) -> float | None:
        return HEARTBEAT_SECONDS if self.channel.ranks > 1 else None

    def _send(self, message: Any) -> None:
        if self._connection is not None:
            with suppress(OSError):  # the next command says that the client is gone
                self._connection.send(message)
