"""A file of source code before it is filtered, whether on disk or in an archive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LICENCE_BYTES = 100_000
"""Number of first bytes of a licence file that are read."""


class Refusal(NamedTuple):
    """The reason why a file cannot be listed or read."""

    rule: str
    reason: str


class Unreadable(Exception):
    """The content of a file cannot be read. The arguments are the rule that counts it, and the reason."""


@dataclass(frozen=True)
class SourceFile:
    """A file found in the input."""

    name: str
    """The input's name, then the path in it."""
    bytes: int
    read: Callable[[], bytes]
    """Returns its content; raises Unreadable. For a file in an archive, call it before taking the next file."""
    licence: Callable[[], str | None]
    """Returns the licence by the licence files of its folder, or of the nearest folder above it that has any."""
    refusal: Refusal | None = None
    """The reason why the file cannot be used, if any."""

    @classmethod
    def refused(cls, name: str, size: int, rule: str, reason: str) -> "SourceFile":
        """A file that cannot be used."""
        return cls(name, size, lambda: b"", lambda: None, Refusal(rule, reason))


def clean(name: str) -> str:
    """A file's name with bytes that are not UTF-8 replaced."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
