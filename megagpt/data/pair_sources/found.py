"""A pair that a source found, and the account of what became of everything that was read."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5
"""Examples of each reason that the report shows."""


@dataclass(frozen=True)
class FoundPair:
    """A query and a document that answers it. The texts are not empty."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    document: str = ""
    """What both texts come from: `file:record`, or a file of source code."""
    split_key: str = ""
    """All pairs with this key are in one split."""
    text_ids: tuple[int, ...] = ()
    """A number for each text, the same for near-duplicates; none where the reader's own numbers do."""
    score: float | None = None
    """How similar people find the two, of scored pairs."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Query, positive and negatives: the order of `text_ids`."""
        return (self.query, self.positive, *self.negatives)

    def record(self) -> dict[str, Any]:
        """A line of a pair file or of a file of scored pairs; see megagpt.data.pairs."""
        if self.score is not None:
            return {"sentence1": self.query, "sentence2": self.positive, "score": self.score}
        record: dict[str, Any] = {"query": self.query, "positive": self.positive}
        if self.negatives:
            record["negatives"] = list(self.negatives)
        record |= {"document": self.document, "split_key": self.split_key}
        return record | ({"text_ids": list(self.text_ids)} if self.text_ids else {})


@dataclass
class Tally:
    """What was read, and what was dropped and why."""

    read: Counter[str] = field(default_factory=Counter)
    """Records, documents, functions and so on, by that word."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Pairs, or what would have become pairs, by the reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Where the first EXAMPLES of each reason were found."""

    def drop(self, reason: str, place: str, count: int = 1) -> None:
        """Account for something that is left out."""
        self.dropped[reason] += count
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(place)
