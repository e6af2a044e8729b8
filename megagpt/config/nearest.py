"""Finds the name that a user probably meant, including abbreviations and the names of other projects."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_ENOUGH = 0.6


def nearest(given: str, names: Iterable[str]) -> str | None:
    """The name that is most similar to `given`; None when no name is similar enough."""
    score, name = max(((_similarity(given.lower(), name.lower()), name) for name in names), default=(0.0, ""))
    return name if score >= _ENOUGH else None


def nearest_key(given: str, keys: Iterable[str]) -> str | None:
    """The dotted key that is most similar to `given`, or None; of equal names, the one in the same section wins."""

    def score(key: str) -> float:
        section, _, name = key.rpartition(".")
        given_section, _, given_name = given.rpartition(".")
        place = SequenceMatcher(None, given_section, section).ratio() if given_section or section else 1.0
        return 0.8 * _similarity(given_name.lower(), name) + 0.2 * place

    best = max(keys, key=score, default=None)
    return best if best and score(best) >= _ENOUGH else None


def _similarity(given: str, name: str) -> float:
    """Similarity from 0 to 1, by spelling, by initials (lr, learning_rate), or by shared words."""
    ratio = SequenceMatcher(None, given, name).ratio()
    if len(given) > 1 and (_initials(name).startswith(given) or _initials(given) == name):
        return max(ratio, 0.9)
    words, others = set(_words(given)), set(_words(name))
    if words and others and (words <= others or others <= words):
        return max(ratio, 0.7 + 0.2 * ratio)
    return ratio


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name) if word]


def _initials(name: str) -> str:
    return "".join(word[0] for word in _words(name))
