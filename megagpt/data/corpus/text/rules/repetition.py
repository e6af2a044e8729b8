"""Measure repetition in a text by the definitions of Gopher's table A1, with datatrove's way of counting.

Runs of words are compared by hashes modulo 2^64, which are computed for all positions at once. Repeated runs are
compared without spaces: `ab c` repeats `a bc`. So their hashes are polynomials over the characters: differences of
prefix sums, divided by the power of the base at their first character.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_CACHED_POWERS = 1 << 16
"""Length of the cached tables of powers, half a megabyte each."""
_MIX = np.random.RandomState(0).randint(1, 1 << 62, size=16, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """Number of repeated `items` (all copies but the first), and their number of characters."""
    unique = set(items)
    if len(unique) == len(items):
        return 0, 0
    return len(items) - len(unique), sum(map(len, items)) - sum(map(len, unique))


class Runs:
    """The runs of words of one text."""

    def __init__(self, analysis: Analysis) -> None:
        self._ends = np.concatenate([[0], np.cumsum(analysis.lengths)])
        size = int(self._ends[-1])
        terms = (analysis.characters.astype(np.uint64) + np.uint64(1)) * _powers(_BASE, size)
        self._sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms)])[self._ends]
        self._divisors = _powers(_INVERSE, size + 1)[self._ends]
        self._values = self.hashes(1)

    def rare(self, asked: Sequence[tuple[int, float]]) -> bool:
        """Whether `top` is certainly 0 for all (length, least) with length >= 2, from the counts of word pairs.

        A run has at most as many copies as its first two words.
        """
        needed = min((self._needed(length, least) for length, least in asked), default=0)
        return needed > 0 and not _has_copies(np.sort(self._separate(2)), needed)

    def top(self, length: int, least: float) -> int:
        """Number of characters, with spaces, of all copies of the most frequent run of `length` words (the first such
        run).

        0 if the number is certainly not above `least`, or if there are too few words.
        """
        needed, hashes = self._needed(length, least), self._separate(length)
        ordered = np.sort(hashes)
        if not _has_copies(ordered, needed):
            return 0
        last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        copies = np.diff(last, prepend=-1)
        most = copies.max()
        first = np.argmax(_among(hashes, ordered[last[copies == most]]))
        return int(most * (self._ends[first + length] - self._ends[first] + length - 1))

    def _needed(self, length: int, least: float) -> int:
        """Smallest number of copies of a run of `length` words that can have more than `least` characters."""
        if len(self._values) < length:
            return 1
        longest = int((self._ends[length:] - self._ends[:-length]).max()) + length - 1
        return int(least / longest - 1e-9) + 1  # rounding must not increase the number

    def _separate(self, length: int) -> np.ndarray:
        """uint64 [runs]: hashes of all runs of `length` words, which depend on the borders between words."""
        count = max(0, len(self._values) - length + 1)
        hashes = self._values[:count] * _MIX[0]
        for place in range(1, length if count else 0):
            hashes += self._values[place : place + count] * _MIX[place]
        return hashes

    def hashes(self, length: int) -> np.ndarray:
        """uint64 [runs]: hashes of all runs of `length` words without spaces, sum over characters c of (c + 1) B^i."""
        count = max(0, len(self._sums) - length)
        return (self._sums[length:] - self._sums[:count]) * self._divisors[:count]

    def repeated(self, length: int) -> int:
        """Number of characters in repeated runs of `length` words.

        Runs are read from the left; after a repeated run, reading continues after its last word.
        """
        hashes = self.hashes(length)
        ordered = np.sort(hashes)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(twice):
            return 0
        places = np.flatnonzero(_among(hashes, twice))
        characters, seen, behind = 0, set(), 0
        for place, value in zip(places.tolist(), hashes[places].tolist(), strict=True):
            if place < behind:
                continue
            if value in seen:
                behind = place + length
                characters += int(self._ends[behind] - self._ends[place])
            else:
                seen.add(value)
        return characters


def _powers(base: int, count: int) -> np.ndarray:
    """uint64 [count]: the powers 0 to count - 1 of a base, modulo 2^64."""
    return _cached_powers(base)[:count] if count <= _CACHED_POWERS else _all_powers(base, count)


@lru_cache(maxsize=2)
def _cached_powers(base: int) -> np.ndarray:
    return _all_powers(base, _CACHED_POWERS)


def _all_powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _has_copies(ordered: np.ndarray, needed: int) -> bool:
    """Whether one of the sorted hashes occurs at least `needed` times."""
    return bool(len(ordered) >= needed and (ordered[needed - 1 :] == ordered[: len(ordered) - needed + 1]).any())


def _among(hashes: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """bool [hashes]: whether each of `hashes` is in the sorted `ordered`. Fast if `ordered` is short."""
    return ordered[np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)] == hashes
