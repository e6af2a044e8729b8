"""The two processes of a server, in one: models in a thread, and what the event loop sees of them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from pathlib import Path

from megagpt import env
from megagpt.config.schema import ParallelConfig
from megagpt.parallel import cpu
from megagpt.serve.host import Host, open_models
from megagpt.serve.interface import Limits, ServedModel
from megagpt.serve.model_client import ModelClient


@dataclass
class Served:
    host: Host
    client: ModelClient
    models: list[ServedModel]


@contextmanager
def served(checkpoints: Mapping[str, Path], parallel: ParallelConfig, limits: Limits) -> Iterator[Served | None]:
    """The models, on the first rank; another rank works until the first leaves the context, and gets None.

    Leaving it raises what ended the loop.
    """
    with open_models(checkpoints, parallel, limits) as host:
        if env.rank() > 0:
            host.loop.run(None)
            yield None
            return
        ours, theirs = Pipe()
        raised: list[BaseException] = []

        def run() -> None:
            cpu.enable()  # for this thread
            try:
                host.loop.run(theirs)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        client = ModelClient(ours)
        try:
            yield Served(host, client, [card.model(client, at, limits) for at, card in enumerate(host.cards)])
        finally:
            client.close()
            thread.join()
        if raised:
            raise raised[0]
