"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

import logging
import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from megagpt.errors import ConfigError, DataError, MegaGPTError
from megagpt.serve.interface import Busy

log = logging.getLogger(__name__)

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""Types of statuses that have one of their own; other 4xx are invalid_request_error, and 5xx are server_error."""


class ApiError(Exception):
    """A refusal or a failure, as a client shall see it."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """`param` names the field of the request that was wrong; `code` is for programs."""
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """What is sent, in a response or in the middle of a stream."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole response."""
        return JSONResponse(self.body, self.status, self.headers)


class ClientGone(Exception):
    """The client closed its connection: nobody is left to answer."""


def busy(retry_after: float) -> ApiError:
    """The refusal of a request that a later try may have accepted; `retry_after` in seconds."""
    seconds = max(1, math.ceil(retry_after))
    return ApiError(
        f"the server has as many requests as it takes: try again in {seconds} s",
        status=429,
        code="server_busy",
        headers={"Retry-After": str(seconds)},
    )


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any error. Failures of the server are logged, and clients are not told their causes."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return busy(error.retry_after)
    if isinstance(error, DataError | ConfigError):
        return ApiError(str(error))
    # An error of ours says all in its message, and one that ends many requests has a part of its traceback from each.
    log.error("a request failed: %s", error, exc_info=None if isinstance(error, MegaGPTError) else error)
    return ApiError("the server failed to answer this request: its log says why", status=500, code="internal_error")


async def routing_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(f"there is nothing at {asked}", status=404, code="unknown_url", headers=headers).response()
    if error.status_code == 405:
        message = f"{asked} is not allowed: use {headers.get('Allow', 'another method')}"
        return ApiError(message, status=405, code="method_not_allowed", headers=headers).response()
    return ApiError(error.detail, status=error.status_code, headers=headers).response()
