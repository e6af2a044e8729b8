"""Ranked answers to prompts, which a reward model learns from."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megagpt.data.chat import Message
from megagpt.data.conversations import shaped_records
from megagpt.data.shapes import SHAPES
from megagpt.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranking:
    """A prompt and K answers to it; from fewer than two nothing can be learnt."""

    messages: tuple[Message, ...]
    """The prompt, whose last turn is the user's."""
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    """Of each answer, 0 for the best; equal ones are ties."""
    user: str | None = None
    """Who wrote the prompt, where that is known."""


def read_rankings(paths: Sequence[str | Path]) -> list[Ranking]:
    """The rankings of all files, in order; each file has one of the SHAPES with ranked answers, which the log names.

    Raises DataError naming file and line of a record that is malformed or has no ranked answers.
    """
    return [ranking for path in paths for ranking in _rankings(Path(path))]


def _rankings(path: Path) -> Iterator[Ranking]:
    count = without = 0
    for record, shape, place in shaped_records(path):
        if shape.rankings is None:
            ranked = "; ".join(other.name for other in SHAPES if other.rankings)
            raise DataError(f"{place}: {shape.name} has no ranked answers, as these have: {ranked}")
        try:
            found = list(shape.rankings(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: not {shape.name}: {error!r}") from None
        count, without = count + 1, without + (not found)
        for messages, answers, ranks in found:
            yield Ranking(messages, answers, ranks, record.get("user"))
    if without:
        log.warning("%s: %d of %d records are left out: no two answers to one prompt", path, without, count)
