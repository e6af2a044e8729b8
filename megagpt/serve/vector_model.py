"""An embedding checkpoint, as the process that listens sees it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megagpt.data.text_batch import Side, TextEncoder
from megagpt.errors import ConfigError, DataError
from megagpt.serve.interface import Ability, GenerateRequest, Limits, Load
from megagpt.serve.model_client import ModelClient
from megagpt.serve.queueing import OpenRequests


@dataclass(frozen=True)
class VectorCard:
    """What is known of an embedding checkpoint without its weights."""

    name: str
    created: int
    """Unix seconds at which the checkpoint was written."""
    encoder: TextEncoder
    dimensions: int

    def model(self, client: ModelClient, number: int, limits: Limits) -> "VectorModel":
        """The model, which runs as number `number` at the other end of the client."""
        return VectorModel(self, client, number, limits)


class VectorModel:
    """Implements `ServedModel` for an embedding model."""

    abilities: frozenset[Ability] = frozenset({"embeddings"})

    def __init__(self, card: VectorCard, client: ModelClient, number: int, limits: Limits) -> None:
        """number: that of the model at the other end of the client."""
        self.name, self.created = card.name, card.created
        self._encoder, self.dimensions = card.encoder, card.dimensions
        self.tokenizer, self.window = self._encoder.tokenizer, self._encoder.max_tokens
        self._client, self._number = client, number
        self._open = OpenRequests(limits.max_rows, limits.max_waiting)

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, side: Side = "document"
    ) -> np.ndarray:
        """See `ServedModel.embed`. Raises DataError for a text that is empty, too long, or has unknown token ids."""
        if dimensions is not None and not 0 < dimensions <= self.dimensions:
            raise ConfigError(f"the vectors have {self.dimensions} dimensions, not {dimensions}")
        self._open.check(len(inputs))
        rows = await asyncio.to_thread(self._rows, inputs, side)
        self._open.check(len(inputs))  # others may have come meanwhile
        number, answer = self._client.ask(self._number, "embed", {"rows": [row.tolist() for row in rows]})
        begun = self._open.add(len(rows))
        try:
            vectors = (await answer.get())[:, :dimensions]
        finally:
            self._client.stop(self._number, number)
            self._open.remove(begun, len(rows))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def count_tokens(self, inputs: Sequence[str]) -> int:
        """See `ServedModel.count_tokens`; includes delimiters and end-of-text."""
        around = sum(map(len, self._encoder.around("document")))
        return sum(len(tokens) + around for tokens in self.tokenizer.encode_batch(list(inputs)))

    def generate(self, request: GenerateRequest) -> Any:
        """Raises ConfigError: an embedding model generates no text."""
        raise ConfigError(f"{self.name} makes vectors and writes no text: take a language model")

    def infill_prompt(self, prefix: str, suffix: str) -> list[int]:
        """Raises ConfigError: an embedding model generates no text."""
        raise ConfigError(f"{self.name} makes vectors and writes no text: take a language model")

    def load(self) -> Load:
        """See `ServedModel.load`."""
        return self._client.load(self._number, self._open.count)

    def _rows(self, inputs: Sequence[str] | Sequence[Sequence[int]], side: Side) -> list[np.ndarray]:
        """The inputs as token ids with delimiters, int64 [n] each. Raises DataError for an invalid input."""
        texts = [text for text in inputs if isinstance(text, str)]
        found = self.tokenizer.encode_batch(texts) if len(texts) == len(inputs) else [list(ids) for ids in inputs]
        room, size = self._encoder.room(side), self.tokenizer.vocab_size
        for place, (given, tokens) in enumerate(zip(inputs, found, strict=True)):
            if not tokens or (isinstance(given, str) and not given.strip()):
                raise DataError(f"input {place} is empty: it has no vector")
            if len(tokens) > room:
                raise DataError(
                    f"input {place} has {len(tokens)} tokens, but the model reads at most {room}: shorten it"
                )
            if not all(0 <= token < size for token in tokens):
                raise DataError(f"input {place} has a token that is not in 0..{size - 1}")
        return [self._encoder.row(tokens, side) for tokens in found]
