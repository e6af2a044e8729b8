"""Start a server: models in this process, HTTP in another."""

import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from megagpt import env
from megagpt.config.schema import ParallelConfig
from megagpt.serve.front import Front, FrontSettings
from megagpt.serve.host import open_models
from megagpt.serve.server import bind
from megagpt.serve.stop_signals import stop_signals


def run(
    checkpoints: Mapping[str, Path], parallel: ParallelConfig, settings: FrontSettings, host: str, port: int
) -> None:
    """Load checkpoints, by the names of their models, and serve them until a signal; all ranks call it.

    Rank 0 listens. Its address is taken before the models are loaded, and answers afterwards. Raises MegaGPTError.
    """
    if env.rank() == 0:
        _lead(checkpoints, parallel, settings, bind(host, port))
        return
    # Only the first rank obeys signals: it tells the others when to end.
    with open_models(checkpoints, parallel, settings.limits) as opened, stop_signals(signal.SIG_IGN):
        opened.loop.run(None)


def _lead(
    checkpoints: Mapping[str, Path], parallel: ParallelConfig, settings: FrontSettings, bound: socket.socket
) -> None:
    front = Front(bound, settings)
    try:
        with open_models(checkpoints, parallel, settings.limits) as opened, stop_signals(front.pass_on):
            front.open(opened.cards)
            opened.loop.run(front.connection)
    except BaseException:
        front.close()
        raise
    front.check(front.close())
