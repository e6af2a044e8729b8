"""Listening, and ending well."""

import asyncio
import logging
import signal
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

log = logging.getLogger(__name__)

LAST_SECONDS = 5
"""Time for what is cut off at the end to say so to its clients."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address and does not listen yet. Raises ConfigError when the address cannot be had."""
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
    """Whether only this machine can reach an address."""
    address = bound.getsockname()[0]
    return address == "::1" or address.startswith("127.")


class Server(uvicorn.Server):
    """Ends at SIGTERM or Ctrl-C: what runs has `grace` seconds to finish, and then is told that the server closes."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals, and do not raise them again at the end, as uvicorn does: the process ends with 0.

        Only a main thread gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        old = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        for bound in sockets or ():
            address, port = bound.getsockname()[:2]
            name = f"[{address}]" if ":" in address else address
            log.info("listening: page http://%s:%d/, API http://%s:%d/v1; Ctrl-C ends", name, port, name, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing more, and wait for what runs."""
        if self._service.running:
            log.info("closing in %g s at most: requests in work: %d", self._grace, self._service.running)
        asyncio.get_running_loop().call_later(self._grace, self._service.closing.set)
        await super().shutdown(sockets)

    def end_now(self) -> None:
        """End without giving anything time to finish."""
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
    """A server of `models` that is to listen on `bound`.

    key: what clients must send. hosts: names, beside those of this machine, that requests may be meant for; they count
    only without a key on a loopback address, which a page of the web could otherwise reach by a name of its own. grace:
    seconds for running requests at the end.
    """
    service = Service(models, bounds)
    checked = key is None and is_loopback(bound)
    if key is None and not checked:
        log.warning("whoever reaches this address can use the models: --api-key asks for a key")
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
