"""Ranked answers to prompts: the training data of reward models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megagpt.data.chat import Message
from megagpt.data.conversations import Account, shaped_records
from megagpt.data.shapes import SHAPES
from megagpt.errors import DataError


@dataclass(frozen=True)
class Ranking:
    """A prompt and K >= 2 answers to it."""

    messages: tuple[Message, ...]
    """The prompt, whose last turn is the user's."""
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    """Rank of each answer, 0 for the best; equal ranks are ties."""
    user: str | None = None
    """The person who wrote the prompt, if known."""
    place: str = field(default="data.rankings", compare=False)
    """File and line of the record, for messages."""


def read_rankings(paths: Sequence[str | Path], account: Account | None = None) -> list[Ranking]:
    """The rankings of all files, in order; each file has one of the SHAPES with ranked answers.

    An answer that repeats a better one word for word is left out, since a comparison of the two teaches nothing.
    account: collects the counts of omitted answers and of fields that no code reads; None logs them

    Raises DataError with file and line of a record that is malformed or has no ranked answers.
    """
    noted = account or Account()
    found = [ranking for path in paths for ranking in _rankings(Path(path), noted)]
    if account is None:
        noted.log()
    return found


def _rankings(path: Path, account: Account) -> Iterator[Ranking]:
    for record, shape, place in shaped_records(path, account):
        if shape.rankings is None:
            ranked = "; ".join(other.name for other in SHAPES if other.rankings)
            raise DataError(f"{place}: {shape.name} has no ranked answers, as these have: {ranked}")
        try:
            found = list(shape.rankings(record))
        except KeyError as error:
            raise DataError(f"{place}: not {shape.name}: there is no {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: not {shape.name}: {error}") from None
        if not found:
            account.left_out["no two answers to one prompt"] += 1
        for messages, answers, ranks in found:
            kept = _without_repetitions(answers, ranks)
            if len(kept) < 2 <= len(answers):
                account.left_out["all answers to a prompt are the same"] += 1
                continue
            if len(kept) < len(answers):
                account.left_out["some of their answers repeat better ones (the others are kept)"] += 1
            best = tuple(answers[n] for n in kept), tuple(ranks[n] for n in kept)
            yield Ranking(messages, *best, record.get("user"), place)


def _without_repetitions(answers: Sequence[str], ranks: Sequence[int]) -> list[int]:
    """Indices of the distinct answers, ascending; of equal texts, the one with the best rank."""
    best: dict[str, int] = {}
    for place in sorted(range(len(answers)), key=lambda place: ranks[place]):
        best.setdefault(answers[place], place)
    return sorted(best.values())
