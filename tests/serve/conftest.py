"""An application over models without weights, and a client of it that needs no socket."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from megagpt.serve.app import build_app
from megagpt.serve.bounds import Bounds
from megagpt.serve.service import Service
from tests.serve.fake import FakeModel
from tests.serve.schemas import check


class Client:
    """Asks an application in this process."""

    def __init__(self, *models: FakeModel, bounds: Bounds | None = None, **settings: Any) -> None:
        self.service = Service(models, bounds)
        self.app = build_app(self.service, **settings)
        self.runner = asyncio.Runner()

    def ask(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, path, **request)

        return self.runner.run(send())

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request that succeeds, which is as the specification says."""
        response = self.ask("POST", f"/v1/{path}", json=body)
        assert response.status_code == 200, response.text
        check(path, response.json())
        return response.json()

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The chunks of a stream that ends as it should."""
        response = self.ask("POST", f"/v1/{path}", json=body | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *events, last, nothing = response.text.split("\n\n")
        assert (last, nothing) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        for chunk in chunks:
            check(f"{path} chunk", chunk)
        return chunks

    def refusal(self, path: str, status: int = 400, **body: Any) -> dict[str, Any]:
        """The error of a request that fails."""
        response = self.ask("POST", f"/v1/{path}", json=body)
        assert response.status_code == status, response.text
        check("error", response.json())
        return response.json()["error"]


@pytest.fixture
def model() -> FakeModel:
    return FakeModel("gpt", {"completions", "suffix", "chat", "edits"})


@pytest.fixture
def client(model) -> Iterator[Client]:
    """Of a model that generates, one that only continues, and one that embeds."""
    made = Client(model, FakeModel("plain", {"completions"}), FakeModel("vectors", {"embeddings"}))
    with made.runner:
        yield made
    assert model.active == 0
