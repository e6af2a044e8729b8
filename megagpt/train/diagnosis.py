"""Finds the ranks that block the others, by comparing the last heartbeats of all ranks."""

from collections import Counter

from megagpt.train.heartbeat import Beat

SHOWN = 8
"""Most ranks that a report describes individually."""


def suspects(beats: list[Beat], silent: set[int]) -> list[int]:
    """The ranks that block the others; all ranks if they are all in the same state.

    If there are silent ranks, it is those. Otherwise only ranks in the earliest step are considered and, if some of
    these do not wait for others, only those. Among them, the ranks that have entered the fewest sections are returned.
    """
    if silent:
        return sorted(silent)
    earliest = min(beat.step for beat in beats)
    behind = [beat for beat in beats if beat.step == earliest]
    busy = [beat for beat in behind if not beat.waiting]
    behind = busy or behind
    fewest = min(beat.entered for beat in behind)
    return [beat.rank for beat in behind if beat.entered == fewest]


def report(reason: str, beats: list[Beat], silent: set[int]) -> str:
    """Describe a hang in one line. silent: ranks whose heartbeat has stopped."""
    named = suspects(beats, silent)
    described = ", ".join(str(beat) for beat in beats if beat.rank in named[:SHOWN])
    if len(named) > SHOWN:
        described += f" and {len(named) - SHOWN} more"
    text = f"{reason}. Held up by {described}"
    others = Counter(beat.section for beat in beats if beat.rank not in named)
    if others:
        text += "; the other ranks: " + ", ".join(f"{count} in {section}" for section, count in others.items())
    return text
