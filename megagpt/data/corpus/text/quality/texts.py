"""Documents of files, read as often as they are asked for, with a limit to how many may be malformed."""

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
    """More malformed records raise DataError."""
    max_record_mb: float = 32
    rejected: int = 0
    """Malformed records of the last time they were read."""
    named: int = 0
    """Malformed records that the log has named."""
    read_before: bool = field(default=False, init=False)
    """Whether all of them have been read."""
    sources: list[Source] = field(init=False)

    def __post_init__(self) -> None:
        self.sources = find_sources(self.inputs, self.patterns)

    @property
    def bytes(self) -> int:
        """Of the files as they are stored."""
        return sum(source.bytes for source in self.sources)

    def __iter__(self) -> Iterator[str]:
        return (text for text in self.records("reading documents") if isinstance(text, str))

    def records(self, what: str) -> Iterator[str | Rejection]:
        """Texts and, in their places, what is malformed; a bar shows how much has been read, and `what` for."""
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
        if not self.read_before:  # the second reading would say it again
            log_unread(f"the inputs, of which only --key {self.key} is read", unread)
            self.read_before = True

    def _refuse(self, rejection: Rejection) -> None:
        self.rejected += 1
        if self.rejected > self.max_rejected:
            raise DataError(f"{rejection}: more than {self.max_rejected} malformed records (--max-rejected)")
        if self.rejected > self.named:
            self.named = self.rejected
            log.warning("left out: %s", rejection)
