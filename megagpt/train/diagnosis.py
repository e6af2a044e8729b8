"""Who holds the others up: compares the last signs of life of all ranks."""

from collections import Counter

from megagpt.train.heartbeat import Beat

SHOWN = 8
"""Ranks that a report describes one by one."""


def suspects(beats: list[Beat], silent: set[int]) -> list[int]:
    """The ranks that hold the others up; all ranks where none stands out.

    They are the silent ranks, if there are any. Else they are the ranks in the earliest step that do not wait for
    others; where all of these wait, or none does, they are those that have entered the fewest sections.
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
    """Describe a hang in one line. silent: ranks that give no sign of life any more."""
    named = suspects(beats, silent)
    described = ", ".join(str(beat) for beat in beats if beat.rank in named[:SHOWN])
    if len(named) > SHOWN:
        described += f" and {len(named) - SHOWN} more"
    text = f"{reason}. Held up by {described}"
    others = Counter(beat.section for beat in beats if beat.rank not in named)
    if others:
        text += "; the other ranks: " + ", ".join(f"{count} in {section}" for section, count in others.items())
    return text
