"""How much of a text repeats itself, by the definitions of Gopher's table A1 as datatrove counts.

Runs of words are compared by hashes modulo 2^64 that are worked out for all places at once. Runs that repeat are
"the words written together": `ab c` repeats `a bc`, so hashes are polynomials over the characters: differences of sums
from the start of the text, divided by the power of the base that they begin with.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from megagpt.data.corpus.text.analysis import Analysis

_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_CACHED_POWERS = 1 << 16
"""Tables of powers are kept up to this size, half a megabyte each."""
_MIX = np.random.RandomState(0).randint(1, 1 << 62, size=16, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """How many of `items` stood before, and their characters."""
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
        """Whether `top` gives 0 for all (length, least) asked, of two words and more, as one look at pairs can tell.

        A run has no more copies than its first two words have.
        """
        needed = min((self._needed(length, least) for length, least in asked), default=0)
        return needed > 0 and not _has_copies(np.sort(self._separate(2)), needed)

    def top(self, length: int, least: float) -> int:
        """Characters of all copies of the most frequent run of `length` words, the first of those, spaces included.

        0 where these are certainly not more than `least`, or where there are too few words.
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
        """Copies of a run of `length` words without which there cannot be more than `least` characters in them."""
        if len(self._values) < length:
            return 1
        longest = int((self._ends[length:] - self._ends[:-length]).max()) + length - 1
        return int(least / longest - 1e-9) + 1  # rounding must not ask for one too many

    def _separate(self, length: int) -> np.ndarray:
        """Hashes of all runs of `length` words, with borders between these: uint64."""
        count = max(0, len(self._values) - length + 1)
        hashes = self._values[:count] * _MIX[0]
        for place in range(1, length if count else 0):
            hashes += self._values[place : place + count] * _MIX[place]
        return hashes

    def hashes(self, length: int) -> np.ndarray:
        """Of all runs of `length` words, written together: uint64. Of a character c at a place, (c + 1) B^place."""
        count = max(0, len(self._sums) - length)
        return (self._sums[length:] - self._sums[:count]) * self._divisors[:count]

    def repeated(self, length: int) -> int:
        """Characters in runs of `length` words that stood before.

        Runs are read from the left; after one that stood before, reading goes on behind it.
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
    """The powers 0 to count - 1 of a base, modulo 2^64: uint64."""
    return _cached_powers(base)[:count] if count <= _CACHED_POWERS else _all_powers(base, count)


@lru_cache(maxsize=2)
def _cached_powers(base: int) -> np.ndarray:
    return _all_powers(base, _CACHED_POWERS)


def _all_powers(base: int, count: int) -> np.ndarray:
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _has_copies(ordered: np.ndarray, needed: int) -> bool:
    """Whether one of the sorted hashes is there so many times."""
    return bool(len(ordered) >= needed and (ordered[needed - 1 :] == ordered[: len(ordered) - needed + 1]).any())


def _among(hashes: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Which of `hashes` are in `ordered`: bool. Quick where these are few."""
    return ordered[np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)] == hashes
