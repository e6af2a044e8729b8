"""The output of the readers of `inputs` for each record: a page, or the reason why there is none."""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Page:
    """A document before it is filtered."""

    text: str
    """Empty before text is extracted from `html`."""
    source: str
    """Name of the record: "CC-MAIN.warc.gz#12", "dump.xml.bz2:Title" or "book.epub"."""
    bytes: int
    """Uncompressed size of the stored record."""
    url: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    """Title, date, author, and other fields of the format."""
    html: bytes | None = None
    """Markup. `inputs.extract` extracts its text after the rules for URLs."""
    unread: tuple[str, ...] = ()
    """Names of the record's other fields, which are not read."""


class Broken(NamedTuple):
    """A record that cannot be used."""

    source: str
    bytes: int
    rule: str
    """Name of the rule that drops the record; equal for all records of this kind."""
    reason: str
    """The exact reason for this record."""
