"""Ranked answers to prompts, which a reward model learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.data.chat import Message
from megagpt.data.conversations import messages_of, records
from megagpt.errors import DataError


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
    """The rankings of all files, in order.

    A record is {"messages": [...], "answers": [{"content": "...", "rank": 0}, ...]}. Raises DataError naming file and
    line of a record that is not.
    """
    return [_ranking(record, place) for path in paths for record, place in records(Path(path))]


def _ranking(record: Any, place: str) -> Ranking:
    try:
        messages = messages_of(record["messages"])
        answers = tuple(answer["content"] for answer in record["answers"])
        ranks = tuple(int(answer["rank"]) for answer in record["answers"])
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{place}: no prompt with ranked answers: {error!r}") from None
    if not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f'{place}: "answers" must each have a text in "content" and a "rank"')
    return Ranking(messages, answers, ranks, record.get("user"))
