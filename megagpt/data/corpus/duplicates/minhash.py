"""MinHash signatures (Broder, 1997): documents that share many runs of words share parts of their signatures.

They are the same numbers as those of datatrove's MinhashDedupSignature for the same hashes of runs of words.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

_PRIME = np.uint64((1 << 61) - 1)
_AT_A_TIME = 256


@dataclass(frozen=True)
class MinHash:
    """How near-duplicates are looked for; the defaults are datatrove's and FineWeb's."""

    words: int = 5
    """In the runs that documents are compared by."""
    buckets: int = 14
    """Chances to be found alike."""
    hashes: int = 8
    """That must agree in a bucket."""

    def chance(self, similarity: float) -> float:
        """The probability that documents are found of whose runs of words this share (Jaccard) is the same."""
        return 1 - (1 - similarity**self.hashes) ** self.buckets


@lru_cache
def _parameters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and summands of `count` hash functions, each (1, count)."""
    dice = np.random.RandomState(1)
    prime = int(_PRIME)
    return tuple(dice.randint(least, prime, dtype=np.uint64, size=(1, count)) for least in (1, 0))


def signature(runs: np.ndarray, setting: MinHash) -> np.ndarray:
    """The smallest value of each hash function over `runs`, hashes of runs of words: uint64 (buckets, hashes).

    Without division, and in pieces that stay in a core's cache.
    """
    factors, summands = _parameters(setting.buckets * setting.hashes)
    smallest = np.full(factors.size, _PRIME)
    for start in range(0, len(runs), _AT_A_TIME):
        values = runs[start : start + _AT_A_TIME, None] * factors + summands
        values = (values & _PRIME) + (values >> np.uint64(61))  # at most _PRIME + 7, and the same modulo _PRIME
        values = np.minimum(values, values - _PRIME)  # which wraps around to something large below _PRIME
        np.minimum(smallest, values.min(axis=0), out=smallest)
    return smallest.reshape(setting.buckets, setting.hashes)


def bucket_keys(runs: np.ndarray, setting: MinHash) -> np.ndarray:
    """One hash for each bucket of a signature, equal where all of the bucket's are; none without runs: uint64.

    The bucket's number seeds the hash, so that keys of all buckets can lie in one table. Among n documents about
    (n * buckets)^2 / 2^65 pairs have a key in common by chance: 5 among a thousand million.
    """
    if not len(runs):
        return np.zeros(0, np.uint64)
    parts = signature(runs, setting)
    return np.array([xxhash.xxh3_64_intdigest(part.data, seed) for seed, part in enumerate(parts)], np.uint64)
