"""Documents of files that can be read several times, with a limit of malformed records."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megagpt.data.readers import FOLDER_PATTERNS, Position, Rejection, Source, chunks, documents, find_sources
from megagpt.data.unread import log_unread
from megagpt.errors import DataError
from megagpt.log import progress

log = logging.getLogger(__name__)


@dataclass
class Texts:
    """The texts of `inputs`: files, folders or globs, as `readers.find_sources` finds them."""

    inputs: Sequence[str | Path]
    key: str = "text"
    """Key of JSON objects, or column of parquet files."""
    patterns: Sequence[str] = FOLDER_PATTERNS
    max_rejected: int = 0
    """Largest number of malformed records; more raise DataError."""
    max_record_mb: float = 32
    """Longer records are malformed, in millions of bytes."""
    rejected: int = 0
    """Number of malformed records in the last pass."""
    named: int = 0
    """Number of malformed records that were logged."""
    read_before: bool = field(default=False, init=False)
    """Whether a whole pass has been made."""
    sources: list[Source] = field(init=False)

    def __post_init__(self) -> None:
        self.sources = find_sources(self.inputs, self.patterns)

    @property
    def bytes(self) -> int:
        """Size of the stored files."""
        return sum(source.bytes for source in self.sources)

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.records("reading documents") if isinstance(text, str))

    def records(self, what: str) -> Iterator[str | Rejection]:
        """Texts, and a rejection in place of each malformed record, with a progress bar named `what`."""
        self.rejected, unread = 0, Counter()
        limit = int(self.max_record_mb * 1e6)
        with progress(self.bytes, "B", what) as bar:
            for chunk in chunks(self.sources, self.key, limit, Position()):
                for item in chunk.items:
                    for text in documents(item, self.key, limit, unread):
                        if isinstance(text, Rejection):
                            self._refuse(text)
                        yield text
                bar.update(chunk.stored_bytes)
        if not self.read_before:  # log it only once
            log_unread(f"the inputs, of which only --key {self.key} is read", unread)
            self.read_before = True

    def _refuse(self, rejection: Rejection) -> None:
        self.rejected += 1
        if self.rejected > self.max_rejected:
            raise DataError(f"{rejection}: more than {self.max_rejected} malformed records (--max-rejected)")
        if self.rejected > self.named:
            self.named = self.rejected
            log.warning("left out: %s", rejection)
