"""Errors in OpenAI's format: {"error": {"message", "type", "param", "code"}}."""

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
"""Error type by status; for other statuses it is invalid_request_error (4xx) or server_error (5xx)."""


class ApiError(Exception):
    """An error that is sent to the client."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """param: the wrong field of the request. code: the kind of error, for programs."""
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.headers = message, status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """The JSON that is sent, as a response or as an event of a stream."""
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an HTTP response."""
        return JSONResponse(self.body, self.status, self.headers)


class ClientGone(Exception):
    """The client has closed its connection."""


def busy(retry_after: float) -> ApiError:
    """The error for a request that the server cannot take now. retry_after: seconds until the client should retry."""
    seconds = max(1, math.ceil(retry_after))
    return ApiError(
        f"the server has reached its limit of requests: try again in {seconds} s",
        status=429,
        code="server_busy",
        headers={"Retry-After": str(seconds)},
    )


def as_api_error(error: Exception) -> ApiError:
    """The ApiError for any error. Internal errors are logged, and their causes are not sent to clients."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return busy(error.retry_after)
    if isinstance(error, DataError | ConfigError):
        return ApiError(str(error))
    # MegaGPTErrors need no traceback. One that ends many requests would log a traceback for each.
    log.error("a request failed: %s", error, exc_info=None if isinstance(error, MegaGPTError) else error)
    return ApiError("the server failed to answer this request: see its log", status=500, code="internal_error")


async def routing_error(request: Request, error: Exception) -> Response:
    """Exception handler for Starlette: answers unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    asked = f"{request.method} {request.url.path}"
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ApiError(f"there is nothing at {asked}", status=404, code="unknown_url", headers=headers).response()
    if error.status_code == 405:
        message = f"{asked} is not allowed: use {headers.get('Allow', 'another method')}"
        return ApiError(message, status=405, code="method_not_allowed", headers=headers).response()
    return ApiError(error.detail, status=error.status_code, headers=headers).response()
