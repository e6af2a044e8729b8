"""Count the kept and dropped files of a corpus, with samples that do not depend on the division into tasks."""

import heapq
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from megagpt.data.unread import most_common

SAMPLES = 20
"""Number of files that are shown for each rule."""


FIELDS = 1000
"""Number of unread fields that are counted per shard, the most frequent first: some files use data as keys."""


@dataclass
class Count:
    """Files that one rule dropped."""

    files: int = 0
    bytes: int = 0
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    """(order, path, reason) of the files with the smallest orders. The order is a checksum of the path, so the samples
    spread over the input."""

    def add(self, path: str, size: int, reason: str | Callable[[], str], limit: int) -> None:
        """Add a file. A reason that is a function is only called if the file becomes a sample."""
        self.files, self.bytes = self.files + 1, self.bytes + size
        order = zlib.crc32(path.encode())
        if len(self.samples) < limit or order < self.samples[-1][0]:
            self._take([(order, path, reason if isinstance(reason, str) else reason())], limit)

    def merge(self, other: "Count", limit: int) -> None:
        """Add all files of `other`."""
        self.files, self.bytes = self.files + other.files, self.bytes + other.bytes
        self._take(other.samples, limit)

    def _take(self, samples: Iterable[tuple[int, str, str]], limit: int) -> None:
        self.samples = heapq.nsmallest(limit, [*self.samples, *map(tuple, samples)])


@dataclass
class Tally:
    """Counts of the files and documents of one shard, or of all shards."""

    limit: int = SAMPLES
    """Number of samples per rule."""
    files: int = 0
    bytes: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    """Number of kept documents by language."""
    licences: Counter[str] = field(default_factory=Counter)
    """Number of kept documents by licence."""
    text_bytes: int = 0
    """Bytes of the documents' text, after redaction."""
    source_bytes: int = 0
    """Bytes of the files of the kept documents."""
    redactions: dict[str, Count] = field(default_factory=dict)
    """By kind: `files` counts changed files, `bytes` is unused, and the samples' reasons count replacements."""
    replacements: Counter[str] = field(default_factory=Counter)
    """Number of placeholders by kind."""
    pieces: int = 0
    """Number of texts that remain of the kept documents after evaluation data was cut out."""
    unread: Counter[str] = field(default_factory=Counter)
    """Number of records that have each unread field."""

    def find(self, size: int) -> None:
        """Count a file of the input."""
        self.files, self.bytes = self.files + 1, self.bytes + size

    def drop(self, rule: str, path: str, size: int, reason: str | Callable[[], str]) -> None:
        """Count a file that is left out."""
        self.dropped.setdefault(rule, Count()).add(path, size, reason, self.limit)

    def redact(self, path: str, counts: Counter[str]) -> None:
        """Count a file in which secrets were replaced. counts: number of replacements by kind"""
        self.replacements += counts
        for kind, count in counts.items():
            self.redactions.setdefault(kind, Count()).add(path, 0, f"{count} replaced", self.limit)

    def keep(self, language: str, licence: str | None, text_bytes: int, source_bytes: int) -> None:
        """Count a document of the corpus."""
        self.languages[language] += 1
        self.licences[licence or "none found"] += 1
        self.text_bytes += text_bytes
        self.source_bytes += source_bytes

    @property
    def documents(self) -> int:
        """Number of kept documents."""
        return self.languages.total()

    def merge(self, other: "Tally") -> None:
        """Add the counts of `other`."""
        sizes = ("files", "bytes", "text_bytes", "source_bytes", "pieces")
        for name in (*sizes, "languages", "licences", "replacements", "unread"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, others in ((self.dropped, other.dropped), (self.redactions, other.redactions)):
            for name, count in others.items():
                mine.setdefault(name, Count()).merge(count, self.limit)

    def to_json(self) -> dict[str, Any]:
        """The counts as JSON values, for `from_json`."""
        counts = ("dropped", "redactions")
        named = {name: {key: vars(count) for key, count in getattr(self, name).items()} for name in counts}
        return vars(self) | named | {"unread": most_common(self.unread, FIELDS)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """The tally of `to_json`."""
        counters = {name: Counter(values.get(name, {})) for name in ("languages", "licences", "replacements", "unread")}
        counts = {
            name: {key: Count(**count) for key, count in values[name].items()} for name in ("dropped", "redactions")
        }
        return cls(**values | counters | counts)
