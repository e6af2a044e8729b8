"""Start a server: models in this process, HTTP in another."""

import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megagpt import env
from megagpt.config.schema import ParallelConfig
from megagpt.serve.front import Front, FrontSettings
from megagpt.serve.host import open_models
from megagpt.serve.server import bind


def run(
    checkpoints: Mapping[str, Path], parallel: ParallelConfig, settings: FrontSettings, host: str, port: int
) -> None:
    """Load checkpoints, by the names of their models, and serve them until a signal; all ranks call it.

    Rank 0 listens. Its address is taken before the models are loaded, and answers afterwards. Raises MegaGPTError.
    """
    if env.rank() == 0:
        _lead(checkpoints, parallel, settings, bind(host, port))
        return
    with open_models(checkpoints, parallel, settings.limits) as opened, _signals_ignored():
        opened.loop.run(None)


def _lead(
    checkpoints: Mapping[str, Path], parallel: ParallelConfig, settings: FrontSettings, bound: socket.socket
) -> None:
    front = Front(bound, settings)
    try:
        with open_models(checkpoints, parallel, settings.limits) as opened, front.signals():
            front.open(opened.cards)
            opened.loop.run(front.connection)
    except BaseException:
        front.close()
        raise
    front.check(front.close())


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """The first rank alone answers to signals, and tells the others when to end."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
