"""Log the fields of records that no code reads, so that none is ignored silently."""

import logging
from collections.abc import Mapping
from pathlib import Path

log = logging.getLogger(__name__)

SHOWN = 20
"""Largest number of fields to name; a file that uses data as keys may have many more."""


def log_unread(source: str | Path, unread: Mapping[str, int]) -> None:
    """Log one warning with the unread fields of a file or of other inputs, if there are any."""
    if unread:
        log.warning("%s: fields that are not read, with their records: %s", source, described(unread))


def most_common(unread: Mapping[str, int], limit: int) -> dict[str, int]:
    """The `limit` most frequent fields with their counts, by count, then by name."""
    return dict(sorted(unread.items(), key=lambda item: (-item[1], item[0]))[:limit])


def described(unread: Mapping[str, int]) -> str:
    """The fields, each with the number of records that have it, the most frequent first."""
    shown = ", ".join(f"{name} ({count:,})" for name, count in most_common(unread, SHOWN).items())
    return shown if len(unread) <= SHOWN else f"{shown} and {len(unread) - SHOWN:,} others"
