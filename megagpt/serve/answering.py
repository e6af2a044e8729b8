"""Turns generated tokens into a response: whole, or as a stream of server-sent events."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from megagpt import __version__
from megagpt.serve.errors import ClientGone, as_api_error
from megagpt.serve.interface import GenerateRequest, NewToken, ServedModel
from megagpt.serve.running import Item, Running
from megagpt.serve.service import Service

Json = dict[str, Any]

FINISH = {"end_of_text": "stop", "stop": "stop", "length": "length", "context": "length"}
"""The API's finish_reason for each of the generator's."""

ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))

STREAM_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",  # otherwise nginx buffers events
}


class Writer(Protocol):
    """Writes one completion as a choice of a response."""

    def pieces(self, item: Item) -> list[Json]:
        """The choices that an item adds to a stream's chunks; the writer also keeps their content for `whole`."""
        ...

    def whole(self) -> Json:
        """The complete choice, after the last item."""
        ...


@dataclass
class Job:
    """The completions of one request."""

    service: Service
    model: ServedModel
    requests: Sequence[GenerateRequest]
    writers: Sequence[Writer]
    """One for each of `requests`."""
    prompt_tokens: int
    prompts_only: bool = False
    new_tokens: int = 0
    began: float = field(default_factory=time.perf_counter)
    answered: bool = False
    """Whether the model has returned an item yet."""

    @property
    def usage(self) -> Json:
        """Tokens so far."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.new_tokens,
            "total_tokens": self.prompt_tokens + self.new_tokens,
        }

    async def pieces(self, ping_seconds: float | None = None) -> AsyncIterator[list[Json]]:
        """Pieces of the choices as they are generated; an empty list after every `ping_seconds` without a piece."""
        async with Running(self.model, self.requests, self.prompts_only) as running:
            while (items := await running.read(ping_seconds)) is not None:
                if items and not self.answered:
                    self.answered = True
                    self.service.metrics.first_token.labels(self.model.name).observe(time.perf_counter() - self.began)
                self.new_tokens += sum(isinstance(item, NewToken) for _, item in items)
                pieces = [piece for number, item in items for piece in self.writers[number].pieces(item)]
                if pieces or not items:
                    yield pieces

    async def finish(self) -> None:
        """Generate all completions to their ends."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass


async def whole(job: Job, request: Request, envelope: Json, choose: Callable[[], Sequence[Json]]) -> Response:
    """The response with the choices that `choose` returns after generation. Raises like `Service.attend`."""
    await job.service.attend(job.finish(), request.receive)
    return json_response(envelope | {"choices": choose(), "usage": job.usage})


def stream(job: Job, envelope: Json, include_usage: bool) -> "EventStream":
    """The response as server-sent events, each with a piece of one choice."""
    head = b"data: " + dumps(envelope | ({"usage": None} if include_usage else {}))[:-1] + b',"choices":['

    async def events() -> AsyncIterator[bytes]:
        async with aclosing(job.pieces(job.service.bounds.ping_seconds)) as batches:
            async for batch in batches:
                yield b"".join(head + dumps(piece) + b"]}\n\n" for piece in batch) or b": waiting\n\n"
        if include_usage:
            yield event(envelope | {"choices": [], "usage": job.usage})
        yield b"data: [DONE]\n\n"

    return EventStream(job.service, events)


class EventStream(Response):
    """Server-sent events. An error before the first event sets the response's status; a later error is an event."""

    def __init__(self, service: Service, events: Callable[[], AsyncIterator[bytes]]) -> None:
        super().__init__(headers=STREAM_HEADERS)
        del self.headers["content-length"]
        self._service, self._events, self._started = service, events, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events; stop generating when the client has disconnected or no longer reads."""
        try:
            await self._service.attend(self._send_all(send), receive)
        except ClientGone:
            return
        except Exception as error:
            problem = as_api_error(error)
            if not self._started:
                await problem.response()(scope, receive, send)
                return
            await self._send(send, event(problem.body))
        await self._send(send, b"", more=False)

    async def _send_all(self, send: Send) -> None:
        async with aclosing(self._events()) as events:
            async for content in events:
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await self._send(send, content)

    async def _send(self, send: Send, content: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._service.bounds.stalled_seconds):
                await send({"type": "http.response.body", "body": content, "more_body": more})
        except TimeoutError:
            raise ClientGone from None


def envelope_of(kind: str, name: str, model: ServedModel) -> Json:
    """The fields around the choices of a response or chunk. kind: prefix of the new id. name: the field `object`."""
    return {
        "id": f"{kind}-{secrets.token_hex(12)}",
        "object": name,
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": f"megagpt-{__version__}-{model.created:x}",
    }


def event(value: Json) -> bytes:
    """A server-sent event; it has one data line, because JSON escapes newlines."""
    return b"data: " + dumps(value) + b"\n\n"


def json_response(value: Json) -> Response:
    """A JSON response."""
    return Response(dumps(value), media_type="application/json")


def dumps(value: Json) -> bytes:
    """Compact JSON in UTF-8."""
    return ENCODER.encode(value).encode()
