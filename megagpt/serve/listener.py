"""The program of the process that listens, see `front`."""

import asyncio
import logging
import socket
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from megagpt.errors import MegaGPTError
from megagpt.log import run_tool
from megagpt.serve.front import FrontSettings
from megagpt.serve.model_client import ModelClient
from megagpt.serve.server import build_server, serve

if TYPE_CHECKING:  # it would import what trains and loads models
    from megagpt.serve.host import Card

log = logging.getLogger(__name__)


def main() -> None:
    """`python -m megagpt.serve.listener CONNECTION SOCKET`, two file descriptors."""
    connection, bound = Connection(int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    try:
        settings: FrontSettings = connection.recv()
        cards: list[Card] = connection.recv()
    except EOFError:  # the models could not be loaded
        return
    client = ModelClient(connection)
    models = [card.model(client, number, settings.limits) for number, card in enumerate(cards)]
    for model in models:
        log.info("%s: %s", model.name, ", ".join(sorted(model.abilities)))
    server = build_server(
        models, bound, key=settings.key, hosts=settings.hosts, bounds=settings.bounds, grace=settings.grace
    )
    try:
        asyncio.run(serve(server, client, bound))
    except MegaGPTError:  # the models' process reports its own failure
        return
    client.close()


if __name__ == "__main__":
    run_tool(main)
