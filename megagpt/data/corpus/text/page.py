"""What the readers of `inputs` make of every record: a page, or the reason why there is none."""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass
class Page:
    """A document before it is filtered."""

    text: str
    """Empty while only `html` is there."""
    source: str
    """Names the record: "CC-MAIN.warc.gz#12", "dump.xml.bz2:Title" or "book.epub"."""
    bytes: int
    """Of the record as it was stored, uncompressed."""
    url: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    """Title, date, author, and whatever else the format states."""
    html: bytes | None = None
    """Markup whose text is to be extracted (`inputs.extract`), after the rules for URLs."""
    unread: tuple[str, ...] = ()
    """Names of the record's other fields, which nobody reads."""


class Broken(NamedTuple):
    """A record that cannot be used."""

    source: str
    bytes: int
    rule: str
    """The reason, in words shared by all records of this kind."""
    reason: str
    """What exactly was wrong with this one."""
