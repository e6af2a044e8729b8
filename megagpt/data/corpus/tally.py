"""Counts of what became of files, with samples that do not depend on who counted."""

import heapq
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from megagpt.data.unread import most_common

SAMPLES = 20
"""Files that are shown for each rule."""


FIELDS = 1000
"""Names of fields that are counted in a shard, of those in most records: some files have data for keys."""


@dataclass
class Count:
    """Files that one rule dropped."""

    files: int = 0
    bytes: int = 0
    samples: list[tuple[int, str, str]] = field(default_factory=list)
    """(order, path, reason): those with the smallest orders, checksums of the paths, which spread over the input."""

    def add(self, path: str, size: int, reason: str | Callable[[], str], limit: int) -> None:
        """One more file. A reason that takes time to tell is only asked for where it is shown."""
        self.files, self.bytes = self.files + 1, self.bytes + size
        order = zlib.crc32(path.encode())
        if len(self.samples) < limit or order < self.samples[-1][0]:
            self._take([(order, path, reason if isinstance(reason, str) else reason())], limit)

    def merge(self, other: "Count", limit: int) -> None:
        """All files of `other` as well."""
        self.files, self.bytes = self.files + other.files, self.bytes + other.bytes
        self._take(other.samples, limit)

    def _take(self, samples: Iterable[tuple[int, str, str]], limit: int) -> None:
        self.samples = heapq.nsmallest(limit, [*self.samples, *map(tuple, samples)])


@dataclass
class Tally:
    """Counts of what became of the files of one shard, or of all shards."""

    limit: int = SAMPLES
    """Samples a rule."""
    files: int = 0
    bytes: int = 0
    dropped: dict[str, Count] = field(default_factory=dict)
    languages: Counter[str] = field(default_factory=Counter)
    """Documents kept, by language; likewise licences."""
    licences: Counter[str] = field(default_factory=Counter)
    text_bytes: int = 0
    """Bytes of the documents' text, after redaction."""
    source_bytes: int = 0
    """Bytes of the files that the documents are from."""
    redactions: dict[str, Count] = field(default_factory=dict)
    """By kind: files is how many were changed, bytes is unused, and the samples' reasons say how often."""
    replacements: Counter[str] = field(default_factory=Counter)
    """By kind: placeholders that were put in."""
    pieces: int = 0
    """Texts that the documents kept fell into, where evaluation data was cut out of them."""
    unread: Counter[str] = field(default_factory=Counter)
    """Records that have a field which nobody reads, by its name."""

    def find(self, size: int) -> None:
        """A file of the input."""
        self.files, self.bytes = self.files + 1, self.bytes + size

    def drop(self, rule: str, path: str, size: int, reason: str | Callable[[], str]) -> None:
        """A file that is left out."""
        self.dropped.setdefault(rule, Count()).add(path, size, reason, self.limit)

    def redact(self, path: str, counts: Counter[str]) -> None:
        """A file in which secrets were replaced."""
        self.replacements += counts
        for kind, count in counts.items():
            self.redactions.setdefault(kind, Count()).add(path, 0, f"{count} replaced", self.limit)

    def keep(self, language: str, licence: str | None, text_bytes: int, source_bytes: int) -> None:
        """A document of the corpus."""
        self.languages[language] += 1
        self.licences[licence or "none found"] += 1
        self.text_bytes += text_bytes
        self.source_bytes += source_bytes

    @property
    def documents(self) -> int:
        """Documents kept."""
        return self.languages.total()

    def merge(self, other: "Tally") -> None:
        """Add what `other` counted."""
        sizes = ("files", "bytes", "text_bytes", "source_bytes", "pieces")
        for name in (*sizes, "languages", "licences", "replacements", "unread"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mine, others in ((self.dropped, other.dropped), (self.redactions, other.redactions)):
            for name, count in others.items():
                mine.setdefault(name, Count()).merge(count, self.limit)

    def to_json(self) -> dict[str, Any]:
        """For from_json."""
        counts = ("dropped", "redactions")
        named = {name: {key: vars(count) for key, count in getattr(self, name).items()} for name in counts}
        return vars(self) | named | {"unread": most_common(self.unread, FIELDS)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Tally":
        """The tally that to_json was called on."""
        counters = {name: Counter(values.get(name, {})) for name in ("languages", "licences", "replacements", "unread")}
        counts = {
            name: {key: Count(**count) for key, count in values[name].items()} for name in ("dropped", "redactions")
        }
        return cls(**values | counters | counts)
