"""What rules and edits return."""

from collections import Counter
from typing import NamedTuple


class Drop(NamedTuple):
    """Which rule leaves a text out, and why."""

    rule: str
    reason: str


class Edit(NamedTuple):
    """What an edit makes of a text."""

    text: str
    """What is left."""
    counts: Counter[str]
    """Lines that went or were changed, by rule."""
    drop: Drop | None = None
    """Why the whole text goes."""


def over(rule: str, value: float, most: float | None) -> Drop | None:
    """A drop where `value`, a share or ratio, is more than `most`."""
    return Drop(rule, f"{value:.3f} is over {most:g}") if most is not None and value > most else None


def under(rule: str, value: float, least: float | None) -> Drop | None:
    """A drop where `value`, a share or ratio, is less than `least`."""
    return Drop(rule, f"{value:.3f} is under {least:g}") if least is not None and value < least else None
