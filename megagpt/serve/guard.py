"""Middleware for every request: checks before the endpoint, security headers, and metrics."""

import hmac
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from megagpt.serve.errors import ApiError, busy
from megagpt.serve.service import Service

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""Headers of every response."""

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
"""Names of this machine in the Host header of local requests."""

PATHS = frozenset(
    {"/v1/completions", "/v1/chat/completions", "/v1/edits", "/v1/embeddings", "/v1/models", "/health", "/metrics", "/"}
)
"""Paths with their own label in metrics; all others share one, since clients can send any path."""


class Guard:
    """Refuses requests that lack the key, name another host, come from another site, or exceed the limit."""

    def __init__(self, app: ASGIApp, service: Service, key: str | None, hosts: Collection[str] | None) -> None:
        """key: API key that clients must send; None for none. hosts: allowed names in the Host header; None for any."""
        self._app, self._service, self._hosts = app, service, hosts
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, metrics = time.perf_counter(), 499, self._service.metrics  # 499: the client disconnected

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers["X-Request-Id"] = f"req_{secrets.token_hex(12)}"
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        self._service.running += 1
        try:
            problem = self._problem(scope)
            await (problem.response() if problem else self._app)(scope, receive, send_with_headers)
        finally:
            self._service.running -= 1
            path = scope["path"] if scope["path"] in PATHS else "other"
            metrics.requests.labels(path, str(status)).inc()
            metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _problem(self, scope: Scope) -> ApiError | None:
        """The error for a request that must be refused, else None."""
        headers = Headers(scope=scope)
        if self._hosts is not None and _name_of(headers.get("host", "")) not in self._hosts:
            return ApiError(
                "the request is meant for another host: see --allow-host of `megagpt serve`", status=403, code="host"
            )
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and scope["method"] != "GET":
            return ApiError("pages of other sites may not send requests", status=403, code="cross_site")
        if not self._has_key(scope["path"], headers):
            return ApiError(
                "the request needs the server's API key: send it as `Authorization: Bearer KEY`",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["method"] == "POST" and self._service.running > self._service.bounds.requests:
            return busy(1)
        return None

    def _has_key(self, path: str, headers: Headers) -> bool:
        """Whether a request may read `path`; the page and /health need no key."""
        if self._key is None or not (path.startswith("/v1/") or path == "/metrics"):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(given.strip().encode("latin-1"), self._key) and scheme.lower() == "bearer"


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    return (host if host.endswith("]") else host.rpartition(":")[0] or host).lower()
