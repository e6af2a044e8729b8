"""Requests to the models of a server and their results, for an event loop. See `model_loop` for the other end."""

import asyncio
import concurrent.futures
import queue
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from megagpt.errors import MegaGPTError
from megagpt.serve.interface import Load, Progress


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


class ModelClient:
    """Asks the models at the other end of a connection. Two threads read and write, so the event loop never waits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._progress: dict[int, Progress] = {}
        self._outbox: queue.SimpleQueue[tuple | None] = queue.SimpleQueue()
        self._answers: dict[int, Answer] = {}
        self._lock = threading.Lock()  # for _answers and _error, so that no request waits after a failure
        self._number = 0
        self._error: MegaGPTError | None = None
        self._closing = False
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._writer = threading.Thread(target=self._write, name="to models", daemon=True)
        self._reader = threading.Thread(target=self._read, name="from models", daemon=True)
        self._writer.start()
        self._reader.start()

    def ask(self, model: int, verb: str, details: dict[str, Any]) -> tuple[int, Answer]:
        """Send a request to model number `model`; returns the request's number and the queue of its results.

        Raises the MegaGPTError that ended the models.
        """
        answer = Answer()
        with self._lock:
            if self._error is not None:
                raise self._error
            self._number += 1
            number = self._number
            self._answers[number] = answer
        self._outbox.put((model, verb, number, details))
        return number, answer

    def stop(self, model: int, number: int) -> None:
        """Cancel a request."""
        with self._lock:
            known = self._answers.pop(number, None)
        if known is not None:
            self._outbox.put((model, "stop", number, {}))

    def done(self, number: int) -> None:
        """Forget a request whose last result has been read."""
        with self._lock:
            self._answers.pop(number, None)

    def load(self, model: int, requests: int) -> Load:
        """What model number `model` does, which has so many unfinished requests, by its last message."""
        said = self._progress.get(model, Progress())
        running = min(said.running, requests)
        return Load(running, requests - running, said.prompt_tokens, said.reused_tokens, said.new_tokens)

    async def failed(self) -> None:
        """Waits for as long as the models work; raises the MegaGPTError that ended them."""
        await asyncio.shield(asyncio.wrap_future(self._ended))

    def close(self) -> None:
        """End the models' loop. What is still being written raises MegaGPTError."""
        self._closing = True
        self._outbox.put(None)
        self._reader.join()
        self._writer.join()
        self._connection.close()

    def _write(self) -> None:
        with suppress(OSError):  # the models have ended; the reader sees that
            while (command := self._outbox.get()) is not None:
                self._connection.send(command)
            self._connection.send(None)

    def _read(self) -> None:
        error = MegaGPTError("the process that runs the models has ended")
        with suppress(EOFError, OSError):
            while not isinstance(message := self._connection.recv(), Exception):
                model, self._progress[model], results = message
                with self._lock:
                    known = [(self._answers.get(number), result) for number, result in results]
                _deliver([(answer, result) for answer, result in known if answer is not None])
            error = message
        if self._closing:
            error = MegaGPTError("the server is stopping")
        with self._lock:
            self._error, answers = error, self._answers
            self._answers = {}
        _deliver([(answer, error) for answer in answers.values()])
        if self._closing:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


def _deliver(results: list[tuple[Answer, Any]]) -> None:
    """Pass results to their event loops, in one call per loop, since each call wakes the loop."""
    for event_loop in {answer.event_loop for answer, _ in results}:
        own = [(answer, result) for answer, result in results if answer.event_loop is event_loop]
        with suppress(RuntimeError):  # the event loop is closed, so nobody waits
            event_loop.call_soon_threadsafe(_put_all, own)


def _put_all(results: list[tuple[Answer, Any]]) -> None:
    for answer, result in results:
        answer.put(result)
