"""Starts and stops the HTTP server."""

import asyncio
import logging
import socket
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from megagpt.errors import ConfigError
from megagpt.serve.app import build_app
from megagpt.serve.bounds import Bounds
from megagpt.serve.guard import LOCAL_HOSTS
from megagpt.serve.interface import ModelHost, ServedModel
from megagpt.serve.service import Service
from megagpt.serve.stop_signals import stop_signals

log = logging.getLogger(__name__)

LAST_SECONDS = 5
"""Seconds after the grace period in which cancelled requests send an error to their clients."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address but does not listen yet. Raises ConfigError when it cannot be bound."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another --host or --port"
        ) from None
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach the socket's address."""
    address = bound.getsockname()[0]
    return address == "::1" or address.startswith("127.")


class Server(uvicorn.Server):
    """Stops at SIGTERM or Ctrl-C: running requests have `grace` seconds to finish and are cancelled afterwards."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM. Unlike uvicorn, do not raise them again at the end, so the process exits with 0.

        Does nothing outside the main thread, where Python delivers no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with stop_signals(self.handle_exit):
            yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and log the addresses."""
        await super().startup(sockets)
        for bound in sockets or ():
            address, port = bound.getsockname()[:2]
            name = f"[{address}]" if ":" in address else address
            log.info("listening: page http://%s:%d/, API http://%s:%d/v1; Ctrl-C ends", name, port, name, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new requests, and wait for the running ones."""
        if self._service.running:
            log.info("closing within %g s; running requests: %d", self._grace, self._service.running)
        asyncio.get_running_loop().call_later(self._grace, self._service.closing.set)
        await super().shutdown(sockets)

    def end_now(self) -> None:
        """Stop without a grace period."""
        self._grace = 0.0
        self.should_exit = True


def build_server(
    models: Sequence[ServedModel],
    bound: socket.socket,
    *,
    key: str | None = None,
    hosts: Collection[str] = (),
    bounds: Bounds | None = None,
    grace: float = 10.0,
) -> Server:
    """A server of `models` for the socket `bound`.

    key: API key that clients must send; None for none. hosts: allowed names in the Host header, in addition to this
    machine's. They are checked only without a key on a loopback address, because a web site could otherwise reach it
    through a domain name that resolves to this machine (DNS rebinding). grace: seconds for running requests at the end.
    """
    service = Service(models, bounds)
    checked = key is None and is_loopback(bound)
    if key is None and not checked:
        log.warning("everyone who can reach this address can use the models: --api-key requires a key")
    config = uvicorn.Config(
        build_app(service, key, LOCAL_HOSTS | set(hosts) if checked else None),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=int(grace) + LAST_SECONDS,
    )
    return Server(config, service, grace)


async def serve(server: Server, host: ModelHost, bound: socket.socket) -> None:
    """Serve until a signal ends it. Raises the MegaGPTError that ends the models."""
    serving, failing = asyncio.create_task(server.serve([bound])), asyncio.create_task(host.failed())
    await asyncio.wait({serving, failing}, return_when=asyncio.FIRST_COMPLETED)
    if failing.done():
        server.end_now()
    await serving
    if failing.done():
        failing.result()
    failing.cancel()
