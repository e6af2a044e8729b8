"""Serves an embedding model."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megagpt.data.text_batch import Side
from megagpt.errors import ConfigError, DataError, TrainingDiverged
from megagpt.evaluate.embedder import Embedder
from megagpt.serve.interface import Ability, GenerateRequest, Limits, Load
from megagpt.serve.model_loop import ModelLoop
from megagpt.serve.queueing import OpenRequests

STEP_TOKENS = 8192
"""Largest number of tokens in one step, after which other models have their turn; a step has at least one text."""


@dataclass(eq=False)
class _Job:
    """The texts of one request (token ids), and the vectors computed so far."""

    number: int
    rows: list[np.ndarray]
    vectors: list[np.ndarray]


class VectorRunner:
    """Implements `Runner`: embeds the texts of all requests in common batches, in order of arrival."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._jobs: deque[_Job] = deque()
        self.running = self.tokens = 0
        """Number of texts that are being embedded, and number of tokens of all texts so far."""

    @property
    def busy(self) -> bool:
        """See `Runner`."""
        return bool(self._jobs)

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """See `Runner`; `details["rows"]` has the token ids of each text, from `TextEncoder.row`."""
        if verb == "stop":
            self._jobs = deque(job for job in self._jobs if job.number != number)
            return
        self._jobs.append(_Job(number, [np.array(row, np.int64) for row in details["rows"]], []))

    def work(self) -> Iterable[tuple[int, Any]]:
        """See `Runner`; a result is the vectors of all texts of a request, float32 [n, size]."""
        batch: list[tuple[_Job, np.ndarray]] = []
        room = STEP_TOKENS
        for job in self._jobs:
            for row in job.rows[len(job.vectors) :]:
                room -= len(row)
                if batch and room < 0:
                    break
                batch.append((job, row))
            if room <= 0:
                break
        self.running = len(batch)
        found = self.embedder.of_rows([row for _, row in batch])
        if not np.isfinite(found).all():
            raise TrainingDiverged("the model's vectors are not finite: load an earlier checkpoint")
        for (job, row), vector in zip(batch, found, strict=True):
            job.vectors.append(vector)
            self.tokens += len(row)
        results = []
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].rows):
            job = self._jobs.popleft()
            results.append((job.number, np.stack(job.vectors)))
        self.running = 0
        return results


class VectorModel:
    """Implements `ServedModel` for an embedding model."""

    abilities: frozenset[Ability] = frozenset({"embeddings"})

    def __init__(
        self, name: str, created: int, runner: VectorRunner, loop: ModelLoop, number: int, limits: Limits
    ) -> None:
        """number: index of the runner among the loop's runners."""
        self.name, self.created, self._runner = name, created, runner
        self._encoder, self.dimensions = runner.embedder.encoder, runner.embedder.size
        self.tokenizer, self.window = self._encoder.tokenizer, self._encoder.max_tokens
        self._loop, self._number = loop, number
        self._open = OpenRequests(limits.max_rows, limits.max_waiting)

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], dimensions: int | None, side: Side = "document"
    ) -> np.ndarray:
        """See `ServedModel.embed`. Raises DataError for a text that is empty, too long, or has unknown token ids."""
        if dimensions is not None and not 0 < dimensions <= self.dimensions:
            raise ConfigError(f"the vectors have {self.dimensions} dimensions, not {dimensions}")
        self._open.check(len(inputs))
        rows = await asyncio.to_thread(self._rows, inputs, side)
        self._open.check(len(inputs))  # other requests may have arrived meanwhile
        number, answer = self._loop.ask(self._number, "embed", {"rows": [row.tolist() for row in rows]})
        begun = self._open.add(len(rows))
        try:
            vectors = (await answer.get())[:, :dimensions]
        finally:
            self._loop.stop(self._number, number)
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
        running = min(self._runner.running, self._open.count)
        return Load(running, self._open.count - running, self._runner.tokens, 0, 0)

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
