"""Fields of records that nobody reads: counted, and named once, so that none vanishes silently."""

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

SHOWN = 20
"""So many fields are named; a file that has data for keys may have more."""


def log_unread(source: str | Path, unread: Mapping[str, int]) -> None:
    """Name the fields of a file, or of other inputs, that nobody reads, in one warning; none for no field."""
    if unread:
        log.warning("%s: fields that are not read, with their records: %s", source, described(unread))


def most_common(unread: Mapping[str, int], limit: int) -> dict[str, int]:
    """The `limit` most frequent fields with their numbers; the order does not depend on who counted first."""
    return dict(sorted(unread.items(), key=lambda item: (-item[1], item[0]))[:limit])


def described(unread: Mapping[str, int]) -> str:
    """The fields, each with the number of records that have it, the most frequent first."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in most_common(unread, SHOWN).items())
    return shown if len(unread) <= SHOWN else f"{shown} and {len(unread) - SHOWN:,} others"
