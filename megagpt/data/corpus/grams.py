"""Runs of words, as 64-bit hashes that are the same in every process."""

import re
from collections.abc import Sequence

import numpy as np
import xxhash

_WORD = re.compile(rb"[0-9a-z_\x80-\xff]+")
_MIX = np.random.RandomState(0).randint(1, 1 << 62, size=64, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def words(text: str) -> list[bytes]:
    """The words of `text` in lower case: identifiers, numbers, and runs of non-ASCII characters."""
    return _WORD.findall(text.lower().encode())


def hash_each(found: Sequence[bytes]) -> np.ndarray:
    """uint64 [n]: 64-bit xxh3 of each of n byte strings, the same in every process."""
    return np.fromiter(map(xxhash.xxh3_64_intdigest, found), np.uint64, len(found))


def ngram_hashes(found: Sequence[bytes], length: int) -> np.ndarray:
    """uint64 [n]: hashes of all runs of `length` words (at most 64), in order; empty if there are too few words."""
    return run_hashes(hash_each(found), length)


def run_hashes(hashes: np.ndarray, length: int) -> np.ndarray:
    """As `ngram_hashes`, from the hashes of the words, uint64 [words]."""
    count = max(0, len(hashes) - length + 1)
    total = np.zeros(count, np.uint64)
    for place in range(length if count else 0):
        total += hashes[place : place + count] * _MIX[place]
    return total ^ (total >> np.uint64(32))  # odd multipliers leave the lowest bits poorly mixed
