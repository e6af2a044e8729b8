"""MinHash signatures (Broder, 1997): documents that share many runs of words share parts of their signatures.

The numbers are the same as in datatrove's MinhashDedupSignature for the same hashes of runs of words.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import xxhash

_PRIME = np.uint64((1 << 61) - 1)
_AT_A_TIME = 256


@dataclass(frozen=True)
class MinHash:
    """Settings of the search for near-duplicates; the defaults are datatrove's and FineWeb's."""

    words: int = 5
    """Number of words in a run (shingle)."""
    buckets: int = 14
    """Number of buckets; documents match if one bucket agrees."""
    hashes: int = 8
    """Number of hashes per bucket; all of them must agree."""

    def chance(self, similarity: float) -> float:
        """The probability that documents with this Jaccard similarity of their runs of words match."""
        return 1 - (1 - similarity**self.hashes) ** self.buckets


@lru_cache
def _parameters(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors and summands of `count` hash functions, each uint64 [1, count]."""
    generator = np.random.RandomState(1)
    prime = int(_PRIME)
    return tuple(generator.randint(least, prime, dtype=np.uint64, size=(1, count)) for least in (1, 0))


def signature(runs: np.ndarray, setting: MinHash) -> np.ndarray:
    """uint64 [buckets, hashes]: the smallest value of each hash function over `runs`.

    runs: uint64 [n], hashes of runs of words

    The computation needs no division, and works on pieces that fit into a core's cache.
    """
    factors, summands = _parameters(setting.buckets * setting.hashes)
    smallest = np.full(factors.size, _PRIME)
    for start in range(0, len(runs), _AT_A_TIME):
        values = runs[start : start + _AT_A_TIME, None] * factors + summands
        values = (values & _PRIME) + (values >> np.uint64(61))  # at most _PRIME + 7, and the same modulo _PRIME
        values = np.minimum(values, values - _PRIME)  # values below _PRIME wrap around to large ones and stay
        np.minimum(smallest, values.min(axis=0), out=smallest)
    return smallest.reshape(setting.buckets, setting.hashes)


def bucket_keys(runs: np.ndarray, setting: MinHash) -> np.ndarray:
    """uint64 [buckets]: one hash over the hashes of each bucket of a signature; empty without runs.

    The bucket's number seeds the hash, so one table can hold the keys of all buckets. Among n documents about
    (n * buckets)^2 / 2^65 pairs share a key by chance: about 5 pairs among 10^9 documents.
    """
    if not len(runs):
        return np.zeros(0, np.uint64)
    parts = signature(runs, setting)
    return np.array([xxhash.xxh3_64_intdigest(part.data, seed) for seed, part in enumerate(parts)], np.uint64)
