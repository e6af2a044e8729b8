"""Results of rules and edits."""

from collections import Counter
from typing import NamedTuple


class Drop(NamedTuple):
    """The rule that drops a text, and its reason."""

    rule: str
    reason: str


class Edit(NamedTuple):
    """The result of an edit."""

    text: str
    """The remaining text."""
    counts: Counter[str]
    """Number of removed or changed lines (or spans) by rule."""
    drop: Drop | None = None
    """A drop of the whole text, if any."""


def over(rule: str, value: float, most: float | None) -> Drop | None:
    """A drop if `value`, a share or ratio, is more than `most`."""
    return Drop(rule, f"{value:.3f} is over {most:g}") if most is not None and value > most else None


def under(rule: str, value: float, least: float | None) -> Drop | None:
    """A drop if `value`, a share or ratio, is less than `least`."""
    return Drop(rule, f"{value:.3f} is under {least:g}") if least is not None and value < least else None
