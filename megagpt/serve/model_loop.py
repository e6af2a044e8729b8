"""The loop that runs the models of a server: in a thread beside the event loop on rank 0, alone on the others."""

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
"""Between two messages to the other ranks, at most: so they never wait long enough to give up, and all see who died."""


class Runner(Protocol):
    """A model on this rank. Every rank gets the same calls, and the collectives within match."""

    busy: bool
    """Whether there is work."""

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """Begin request `number` or stop it; `details` are JSON values."""
        ...

    def work(self) -> Iterable[tuple[int, Any]]:
        """Do some; returns results with the numbers of their requests."""
        ...


class Answer:
    """The results of one request, as they come to the event loop that asked."""

    def __init__(self) -> None:
        self.event_loop = asyncio.get_running_loop()
        self._results: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, result: Any) -> None:
        """Hand over a result, or an exception; called in the event loop."""
        self._results.put_nowait(result)

    async def get(self) -> Any:
        """The next result. Raises what the model raised."""
        result = await self._results.get()
        if isinstance(result, Exception):
            raise result
        return result


class ModelLoop:
    """Runs models one after the other, a step each, for as long as any has work. Requests come in between."""

    def __init__(self, runners: Sequence[Runner], timeout: datetime.timedelta) -> None:
        """timeout: how long ranks wait for each other. Collective."""
        self.runners, self.channel = runners, Channel(timeout)
        self._inbox: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._lock = threading.Lock()  # of the answers and the error: what comes when all has failed must not wait
        self._number = 0
        self._error: MegaGPTError | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread: threading.Thread | None = None

    # On rank 0, by the event loop

    def start(self) -> None:
        """Run in a thread."""
        self._thread = threading.Thread(target=self._run_thread, name="models", daemon=True)
        self._thread.start()

    def ask(self, model: int, verb: str, details: dict[str, Any]) -> tuple[int, Answer]:
        """Send model number `model` a request; returns its number and where its results arrive."""
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
        """Nobody waits for the results of a request any more."""
        with self._lock:
            known = self._answers.pop(number, None)
        if known is not None:
            self._inbox.put((model, "stop", number, {}))

    def done(self, number: int) -> None:
        """A request has given its last result."""
        with self._lock:
            self._answers.pop(number, None)

    async def failed(self) -> None:
        """See `ModelHost.failed`."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def close(self) -> None:
        """End the loop on all ranks. Raises what had ended it before."""
        self._inbox.put(None)
        self._thread.join()
        if (error := self._ended.exception()) is not None:
            raise error

    def _run_thread(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_device(env.local_rank())  # which every thread has for itself
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

    # On every rank

    def run(self) -> None:
        """Work until rank 0 closes. Raises DistributedError when contact with a rank is lost."""
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
        """Of rank 0, what has come in; waits for something where there is no work. None: all is to end."""
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
        """Hand results over to their event loops, all that have one in one go, since each wakes it."""
        for event_loop in {answer.event_loop for answer, _ in results}:
            own = [(answer, result) for answer, result in results if answer.event_loop is event_loop]
            with suppress(RuntimeError):  # it was closed, with all who waited in it
                event_loop.call_soon_threadsafe(_put_all, own)


def _put_all(results: list[tuple[Answer, Any]]) -> None:
    for answer, result in results:
        answer.put(result)
