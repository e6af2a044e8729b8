"""Shared by all endpoints: the models, the bounds, reading bodies, and cancelling work when its client disconnects."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from megagpt.serve.bounds import Bounds
from megagpt.serve.errors import ApiError, ClientGone
from megagpt.serve.interface import Ability, ServedModel
from megagpt.serve.metrics import Metrics

Result = TypeVar("Result")

ABILITIES: tuple[Ability, ...] = ("completions", "suffix", "chat", "edits", "embeddings")

CANNOT: dict[Ability, str] = {
    "completions": "turns texts into vectors and generates none",
    "suffix": "has no tokens for filling in the middle, so it cannot insert before a suffix",
    "chat": "has no tokens for the roles of a conversation, so it cannot chat",
    "edits": "has no tokens for the roles of a conversation, so it cannot edit by instruction",
    "embeddings": "generates text and makes no vectors",
}


class Service:
    """The models, bounds and metrics of one server."""

    def __init__(self, models: Sequence[ServedModel], bounds: Bounds | None = None) -> None:
        self.models = {model.name: model for model in models}
        self.bounds = bounds or Bounds()
        self.metrics = Metrics(models)
        self.running = 0
        """Number of running requests."""
        self.closing = asyncio.Event()
        """Set when running requests must end."""

    def find(self, name: str) -> ServedModel:
        """The model called `name`. Raises ApiError 404 for an unknown name."""
        if name not in self.models:
            served = ", ".join(self.models)
            raise ApiError(
                f"there is no model {name[:100]!r} here: this server has {served}",
                status=404,
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    def able(self, name: str, ability: Ability, param: str = "model") -> ServedModel:
        """The model called `name`. Raises ApiError if it lacks the ability; the message names the models that have it.

        param: the field of the request that asks for the ability.
        """
        model = self.find(name)
        if ability not in model.abilities:
            others = ", ".join(other.name for other in self.models.values() if ability in other.abilities)
            raise ApiError(
                f"the model {name} {CANNOT[ability]}: " + (f"ask {others}" if others else "no model here can"),
                param=param,
                code="unsupported_by_model",
            )
        return model

    async def read(self, request: Request) -> bytes:
        """The body of a request, of any content type. Raises ApiError if it is too long or too slow, or ClientGone."""
        most, parts, length = self.bounds.body_bytes, [], 0
        declared = request.headers.get("content-length", "0")
        too_long = ApiError(
            f"the body has more than {most:,} bytes: send less at a time", status=413, code="request_too_large"
        )
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_long
        try:
            async with asyncio.timeout(self.bounds.body_seconds):
                async for part in request.stream():
                    length += len(part)
                    if length > most:
                        raise too_long
                    parts.append(part)
        except TimeoutError:
            seconds = self.bounds.body_seconds
            raise ApiError(f"the body did not arrive in {seconds:g} s", status=408, code="request_timeout") from None
        except ClientDisconnect:
            raise ClientGone from None
        return b"".join(parts)

    async def attend(self, work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
        """The result of `work`, which is cancelled when the client disconnects or the server closes.

        Raises ClientGone when the client disconnects, ApiError 503 when the server closes, and the errors of `work`.
        """
        doing = asyncio.ensure_future(work)
        leaving, closing = asyncio.ensure_future(_client_leaves(receive)), asyncio.ensure_future(self.closing.wait())
        try:
            await asyncio.wait({doing, leaving, closing}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                return doing.result()
            if leaving.done():
                raise ClientGone
            raise ApiError("the server is closing: try again", status=503, code="server_closing")
        finally:
            for task in (doing, leaving, closing):
                task.cancel()
            await asyncio.gather(doing, leaving, closing, return_exceptions=True)


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
