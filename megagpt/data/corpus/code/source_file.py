"""A file of source code before it is filtered, whether on disk or in an archive."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

LICENCE_BYTES = 100_000
"""So much of a licence file is read."""


class Refusal(NamedTuple):
    """Why a file cannot even be read or listed."""

    rule: str
    reason: str


class Unreadable(Exception):
    """The content of a file cannot be had: arguments are the rule that accounts for it, and the reason."""


@dataclass(frozen=True)
class SourceFile:
    """A file found in the input."""

    name: str
    """Where it was found: the input's name, then the path in it."""
    bytes: int
    read: Callable[[], bytes]
    """Gives its content; raises Unreadable. Of archives it must be called before the next file is asked for."""
    licence: Callable[[], str | None]
    """Gives what the licence files in its folder, or the nearest one above it that has any, say."""
    refusal: Refusal | None = None

    @classmethod
    def refused(cls, name: str, size: int, rule: str, reason: str) -> "SourceFile":
        """A file that nothing more than its size is known of."""
        return cls(name, size, lambda: b"", lambda: None, Refusal(rule, reason))


def clean(name: str) -> str:
    """A file's name as text that can be written as UTF-8, whatever bytes it is made of."""
    return name.encode(errors="surrogateescape").decode(errors="replace")
