"""Near-duplicate texts, by MinHash over runs of characters (Broder, 1997) and locality-sensitive hashing."""

import zlib
from typing import TYPE_CHECKING

from megagpt.data.pairs import folded
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from datasketch import MinHash

RUN = 6
"""Bytes of a run. A changed word changes as many runs as it has letters, and five more."""
PERMUTATIONS = 128
"""The estimated similarity is off by 0.03 to 0.04 (one standard deviation) near 0.85."""
LIKENESS = 0.85
"""Share of two texts' runs that both have, from which on the texts are near-duplicates."""


class NearDuplicates:
    """Texts seen so far. It finds those that are like a new one."""

    def __init__(self, likeness: float = LIKENESS) -> None:
        try:
            from datasketch import MinHash, MinHashLSH
        except ImportError:
            raise ConfigError('near-duplicates are found by datasketch: pip install "megagpt[embeddings]"') from None
        if not 0 < likeness <= 1:
            raise ConfigError(f"--near-duplicates is {likeness}; it must be above 0 and at most 1")
        self.likeness = likeness
        # Candidates are compared by their whole signatures, so the index may propose more than it should, not less.
        self._index = MinHashLSH(threshold=max(0.05, likeness - 0.1), num_perm=PERMUTATIONS, weights=(0.1, 0.9))
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=zlib.crc32)  # copied, since making one takes long
        self._signatures: list[MinHash] = []
        self._keys: list[int] = []

    def add(self, text: str, key: int) -> int | None:
        """The key of the first text seen that is nearly `text`; without one, `text` is remembered under `key`."""
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
