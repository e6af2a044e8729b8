"""The work of an embedding checkpoint in a server, on every rank."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megagpt.errors import TrainingDiverged
from megagpt.evaluate.embedder import Embedder
from megagpt.serve.interface import Progress

STEP_TOKENS = 8192
"""Tokens of texts that are embedded before other requests, or other models, have their turn; at least one text is."""


@dataclass(eq=False)
class _Job:
    """The texts of one request, and their vectors so far."""

    number: int
    rows: list[np.ndarray]
    vectors: list[np.ndarray]


class VectorRunner:
    """Implements `Runner`: embeds the texts of all requests together, in the order in which they came."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._jobs: deque[_Job] = deque()
        self.progress = Progress()

    @property
    def busy(self) -> bool:
        """See `Runner`."""
        return bool(self._jobs)

    def obey(self, verb: str, number: int, details: dict[str, Any]) -> None:
        """See `Runner`; `details` has the rows, as `TextEncoder` makes them."""
        if verb == "stop":
            self._jobs = deque(job for job in self._jobs if job.number != number)
            return
        self._jobs.append(_Job(number, [np.array(row, np.int64) for row in details["rows"]], []))

    def work(self) -> Iterable[tuple[int, Any]]:
        """See `Runner`; a result has all vectors of a request, float32 [n, size]."""
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
        found = self.embedder.of_rows([row for _, row in batch])
        if not np.isfinite(found).all():
            raise TrainingDiverged("the model's vectors are not finite: load an earlier checkpoint")
        for (job, _), vector in zip(batch, found, strict=True):
            job.vectors.append(vector)
        tokens = self.progress.prompt_tokens + sum(len(row) for _, row in batch)
        self.progress = Progress(running=len(batch), prompt_tokens=tokens)
        results = []
        while self._jobs and len(self._jobs[0].vectors) == len(self._jobs[0].rows):
            job = self._jobs.popleft()
            results.append((job.number, np.stack(job.vectors)))
        return results
