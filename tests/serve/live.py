"""A server that listens on loopback, in a thread of this process."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from megagpt.errors import MegaGPTError
from megagpt.serve.server import Server, bind, build_server, serve
from tests.serve.fake import FakeModel


class Live:
    """Models and where they are served."""

    def __init__(self, *models: FakeModel, **settings: Any) -> None:
        self.models, self.bound = models, bind("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.bound.getsockname()[1]}"
        self.server: Server = build_server(models, self.bound, **settings)
        self.error: MegaGPTError | None = None
        self.raised: MegaGPTError | None = None
        self.thread = threading.Thread(target=self._run)

    async def failed(self) -> None:
        while self.error is None:
            await asyncio.sleep(0.01)
        raise self.error

    def _run(self) -> None:
        try:
            asyncio.run(serve(self.server, self, self.bound))
        except MegaGPTError as error:
            self.raised = error

    def terminate(self) -> None:
        """What SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def live(*models: FakeModel, **settings: Any) -> Iterator[Live]:
    made = Live(*models, **settings)
    made.thread.start()
    try:
        while not made.server.started and made.thread.is_alive():
            pass
        yield made
    finally:
        made.server.end_now()
        made.thread.join(20)
    assert not made.thread.is_alive()
    assert all(model.active == 0 for model in models)
