"""The loop that runs a server's models: on rank 0 in its own thread, on the other ranks in the main thread."""

import asyncio
import concurrent.futures
import datetime
import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch

from megagpt import env
from megagpt.errors import DistributedError, MegaGPTError
from megagpt.parallel import cpu, launch
from megagpt.serve.channel import Channel

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
"""Longest time between two messages to the other ranks. It keeps them from timing out, and reveals dead ranks."""


class Runner(Protocol):
    """A model on this rank. Every rank gets the same calls in the same order, so that collectives match."""

    busy: bool
    """Whether there is work."""

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """Start request `number`, or stop it if `verb` is "stop"; `details` are JSON values."""
        ...

    def work(self) -> Iterable[tuple[int, Any]]:
        """Do one step of work; returns (request number, result) pairs."""
        ...


class Answer:
    """The queue of results of one request, for the event loop that sent it."""

    def __init__(self) -> None:
        self.event_loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, result: Any) -> None:
        """Add a result or an exception; called in the event loop."""
        self._results.put_nowait(result)

    async def get(self) -> Any:
        """The next result. Raises the exception if it is one."""
        result = await self._results.get()
        if isinstance(result, Exception):
            raise result
        return result


class ModelLoop:
    """Runs one step of each busy model in turn, and takes new requests between these rounds."""

    def __init__(self, runners: Sequence[Runner], timeout: datetime.timedelta) -> None:
        """timeout: longest time that ranks wait for each other. Collective."""
        self.runners, self.channel = runners, Channel(timeout)
        self._inbox: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._lock = threading.Lock()  # for _answers and _error, so that no request waits after a failure
        self._number = 0
        self._error: MegaGPTError | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread: threading.Thread | None = None

    # Called on rank 0 by the event loop

    def start(self) -> None:
        """Start the loop in a thread."""
        self._thread = threading.Thread(target=self._run_thread, name="models", daemon=True)
        self._thread.start()

    def ask(self, model: int, verb: str, details: dict[str, Any]) -> tuple[int, Answer]:
        """Send a request to model number `model`; returns the request's number and the queue of its results.

        Raises the MegaGPTError that ended the loop.
        """
        answer = Answer()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._number += 1
            number = self._number
            self._answers[number] = answer
        self._inbox.put((model, verb, number, details))
        return number, answer

    def stop(self, model: int, number: int) -> None:
        """Cancel a request."""
        with self._lock:
            known = self._answers.pop(number, None)
        if known is not None:
            self._inbox.put((model, "stop", number, {}))

    def done(self, number: int) -> None:
        """Forget a request whose last result has been read."""
        with self._lock:
            self._answers.pop(number, None)

    async def failed(self) -> None:
        """See `ModelHost.failed`."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def close(self) -> None:
        """End the loop on all ranks. Raises the error if one had ended it before."""
        self._inbox.put(None)
        self._thread.join()
        if (error := self._ended.exception()) is not None:
            raise error

    def _run_thread(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(env.local_rank())  # the current device is set per thread
        cpu.enable()
        try:
            self.run()
        except Exception as error:
            self._fail(error)
        else:
            self._give_up(MegaGPTError("the server is stopping"))
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        told = error if isinstance(error, MegaGPTError) else MegaGPTError(f"the model failed: {error}")
        self._give_up(told)
        self._ended.set_exception(error)

    def _give_up(self, error: MegaGPTError) -> None:
        with self._lock:
            self._error, answers = error, self._answers
            self._answers = {}
        self._deliver([(answer, error) for answer in answers.values()])

    # Called on every rank

    def run(self) -> None:
        """Run until rank 0 closes the loop. Raises DistributedError when the contact with a rank is lost."""
        try:
            while (commands := self.channel.broadcast(self._commands())) is not None:
                for model, verb, number, details in commands:
                    self.runners[model].obey(verb, number, details)
                for runner in self.runners:
                    if runner.busy:
                        self._hand_out(runner.work())
        except Exception as error:
            if self.channel.ranks > 1 and launch.is_lost_contact(error):
                raise DistributedError(f"contact with another rank was lost: {error}") from error
            raise

    def _commands(self) -> list[tuple] | None:
        """On rank 0 the new commands, waiting for one if no model is busy; None ends the loop. Empty on other ranks."""
        if env.rank() > 0:
            return []
        found: list[tuple] = []
        wait = not any(runner.busy for runner in self.runners)
        with suppress(queue.Empty):
            while True:
                command = self._inbox.get(wait, HEARTBEAT_SECONDS if self.channel.ranks > 1 else None)
                if command is None:
                    return None
                found.append(command)
                wait = False
        return found

    def _hand_out(self, results: Iterable[tuple[int, Any]]) -> None:
        if env.rank() == 0:
            with self._lock:
                known = [(self._answers.get(number), result) for number, result in results]
            self._deliver([(answer, result) for answer, result in known if answer is not None])

    def _deliver(self, results: list[tuple[Answer, Any]]) -> None:
        """Pass results to their event loops, in one call per loop, since each call wakes the loop."""
        for event_loop in {answer.event_loop for answer, _ in results}:
            own = [(answer, result) for answer, result in results if answer.event_loop is event_loop]
            with suppress(RuntimeError):  # the event loop is closed, so nobody waits
                event_loop.call_soon_threadsafe(_put_all, own)


def _put_all(results: list[tuple[Answer, Any]]) -> None:
    for answer, result in results:
        answer.put(result)
