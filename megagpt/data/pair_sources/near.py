"""Near-duplicate texts, by MinHash over runs of characters (Broder, 1997) and locality-sensitive hashing."""

import zlib
from typing import TYPE_CHECKING

from megagpt.data.pairs import folded
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from datasketch import MinHash

RUN = 6
"""Number of bytes of a run. A changed word of n letters changes n + 5 runs."""
PERMUTATIONS = 128
"""Number of hash functions. Near 0.85, the estimated similarity has a standard deviation of 0.03 to 0.04."""
LIKENESS = 0.85
"""Smallest Jaccard similarity of the runs of near-duplicates."""


class NearDuplicates:
    """The texts seen so far, and a search for near-duplicates of a new text among them."""

    def __init__(self, likeness: float = LIKENESS) -> None:
        """Raises ConfigError for a likeness out of range, or without datasketch."""
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ConfigError('near-duplicates are found by datasketch: pip install "megagpt[embeddings]"') from None
        if not 0 < likeness <= 1:
            raise ConfigError(f"--near-duplicates is {likeness}; it must be above 0 and at most 1")
        self.likeness = likeness
        # Candidates are compared by their whole signatures, so the index may return too many, but must not miss any.
        self._index = MinHashLSH(threshold=max(0.05, likeness - 0.1), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)  # copied, since making one takes long
        self._signatures: list[MinHash] = []
        self._keys: list[int] = []

    def add(self, text: str, key: int) -> int | None:
        """The key of the first near-duplicate among the earlier texts. If there is none, store `text`; returns None."""
        signature = self._signature(text)
        for place in sorted(self._index.query(signature)):
            if signature.jaccard(self._signatures[place]) >= self.likeness:
                return self._keys[place]
        self._index.insert(len(self._keys), signature, check_duplication=False)
        self._signatures.append(signature)
        self._keys.append(key)
        return None

    def _signature(self, text: str) -> "MinHash":
        content = b" %b " % folded(text).encode(errors="surrogatepass")
        signature = self._empty.copy()
        signature.update_batch({content[at : at + RUN] for at in range(max(1, len(content) - RUN + 1))})
        return signature
