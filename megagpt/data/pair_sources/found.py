"""A pair from a source, and the counts of read and dropped items."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

EXAMPLES = 5
"""Number of examples that the report shows for each reason."""


@dataclass(frozen=True)
class FoundPair:
    """A query and a document that answers it. The texts are not empty."""

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    document: str = ""
    """Common source of both texts: `file:record`, or a file of source code."""
    split_key: str = ""
    """All pairs with this key are in one split."""
    text_ids: tuple[int, ...] = ()
    """A number for each text, equal for near-duplicates; empty if the reader of the file shall compute the numbers."""
    score: float | None = None
    """Similarity according to people, in scored pairs."""

    @property
    def texts(self) -> tuple[str, ...]:
        """Query, positive and negatives: the order of `text_ids`."""
        return (self.query, self.positive, *self.negatives)

    def record(self) -> dict[str, Any]:
        """The pair as an object of a pair file or of a file of scored pairs; see megagpt.data.pairs."""
        if self.score is not None:
            return {"sentence1": self.query, "sentence2": self.positive, "score": self.score}
        record: dict[str, Any] = {"query": self.query, "positive": self.positive}
        if self.negatives:
            record["negatives"] = list(self.negatives)
        record |= {"document": self.document, "split_key": self.split_key}
        return record | ({"text_ids": list(self.text_ids)} if self.text_ids else {})


@dataclass
class Tally:
    """Counts of read items, and of dropped items by reason."""

    read: Counter[str] = field(default_factory=Counter)
    """Number of read records, documents, functions and so on, by that word."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Number of dropped pairs or possible pairs, by reason."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Places of the first EXAMPLES for each reason."""

    def drop(self, reason: str, place: str, count: int = 1) -> None:
        """Count `count` dropped items."""
        self.dropped[reason] += count
        seen = self.examples.setdefault(reason, [])
        if len(seen) < EXAMPLES:
            seen.append(place)
