"""Training samples as a pure function of (seed, sample index): packed windows of one corpus, and mixtures.

Nothing here depends on the length of the run, the number of ranks or earlier reads, and nothing is written to disk: the
seed and a sample's number determine its content. Permutations come from sorting hashes rather than from a random
generator's stream, so they are the same under every version of NumPy.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from megagpt.data.identity import WatchedFile
from megagpt.data.indexed import corpus_files, open_corpus
from megagpt.errors import DataError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

BLOCK = 65_536
"""Number of consecutive samples in which a mixture has its exact proportions."""


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finalizer: a bijection of uint64 whose every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashes(count: int, *keys: int) -> np.ndarray:
    """uint64 [count]: a different pseudo-random number for each of 0..count-1, a function of `keys`."""
    state = np.zeros(1, np.uint64)
    for key in keys:
        state = _mix(state + np.uint64(key % 2**64) + np.uint64(0x9E3779B97F4A7C15))
    return _mix(np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state)


def permutation(count: int, *keys: int) -> np.ndarray:
    """uint32 or int64 [count]: 0..count-1 in a random order, a function of `keys`."""
    order = np.argsort(hashes(count, *keys))  # hashes of one call are all different, so every sorting method agrees
    return order.astype(np.uint32) if count < 2**32 else order


def documents_of(split: Split, proportions: Sequence[float], count: int) -> np.ndarray:
    """int64 [n]: the numbers of the documents in `split`, ascending. A document's split depends only on its number.

    proportions: shares of train, validation and test, relative to their sum.
    """
    edges = np.cumsum(proportions) / np.sum(proportions)
    edges[np.flatnonzero(proportions)[-1] :] = 1.0  # rounding must leave no document out
    place = (hashes(count) >> np.uint64(11)) / 2.0**53  # uniform in [0, 1)
    return np.flatnonzero(np.searchsorted(edges, place, side="right") == SPLITS.index(split))


def split_of(key: str, proportions: Sequence[float]) -> Split:
    """The split of everything with this key. It depends only on a hash of the key."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2.0**64
    edges = np.cumsum(proportions) / np.sum(proportions)
    edges[np.flatnonzero(proportions)[-1] :] = 1.0
    return SPLITS[int(np.searchsorted(edges, place, side="right"))]


class PackedCorpus:
    """One split of one corpus: its documents are concatenated and cut into windows.

    In epoch e the documents are permuted by (seed, e), concatenated, and cut into windows of sequence_length + 1
    tokens that overlap by one; the windows are permuted by (seed, e). The last tokens, too few for a window, are left
    out; each epoch leaves out other tokens.
    """

    def __init__(
        self, prefix: str | Path, proportions: Sequence[float], split: Split, sequence_length: int, seed: int = 0
    ) -> None:
        """Open the corpus at `prefix`. Raises DataError when it is damaged. The split may turn out to be empty."""
        self.prefix, self.split, self.sequence_length, self.seed = str(prefix), split, sequence_length, seed
        dataset, self.about = open_corpus(prefix)
        self.documents = documents_of(split, proportions, len(dataset))
        # The index is copied and tokens are read, not mapped: if a mapped file shrinks, a signal kills the process.
        self._lengths = dataset.sequence_lengths[self.documents]
        self._begins = dataset.index.sequence_pointers[self.documents]
        self._dtype = np.dtype(dataset.index.dtype)
        self._tokens = WatchedFile(corpus_files(prefix)[0])
        self._in_order = np.cumsum(self._lengths, dtype=np.int64)
        self.num_tokens = int(self._in_order[-1]) if len(self.documents) else 0
        self.samples_per_epoch = max(0, (self.num_tokens - 1) // sequence_length)
        self._epoch = lru_cache(maxsize=2)(self._build_epoch)  # two, because one batch can hold the end of an epoch

    def __getitem__(self, index: int) -> np.ndarray:
        """int64 [sequence_length + 1]: tokens of sample `index`, which may be any number from 0."""
        if not self.samples_per_epoch:
            raise DataError(
                f"the {self.split} split of {self.prefix} ({len(self.documents)} documents, {self.num_tokens} tokens) "
                f"is too short for one sequence of {self.sequence_length} + 1 tokens: use more text, a shorter "
                "model.sequence_length or a larger share in data.split"
            )
        epoch, place = divmod(int(index), self.samples_per_epoch)
        order, ends, windows = self._epoch(epoch)
        return self._read(order, ends, int(windows[place]) * self.sequence_length, self.sequence_length + 1)

    def read(self, start: int, count: int) -> np.ndarray:
        """int64 [count]: tokens from `start` on, with the documents in the order of the corpus."""
        return self._read(range(len(self.documents)), self._in_order, start, count)

    def _build_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        order = permutation(len(self.documents), self.seed, epoch, 0)
        ends = np.cumsum(self._lengths[order], dtype=np.int64)
        return order, ends, permutation(self.samples_per_epoch, self.seed, epoch, 1)

    def _read(self, order: Sequence[int], ends: np.ndarray, start: int, count: int) -> np.ndarray:
        """int64 [count]: tokens start..start+count-1 of the documents in this order.

        order: indices into the split's documents
        ends: int64, cumulative lengths of the documents in this order
        """
        tokens = np.empty(count, np.int64)
        place, filled = int(np.searchsorted(ends, start, side="right")), 0
        while filled < count:
            local = int(order[place])
            offset = start + filled - (int(ends[place]) - int(self._lengths[local]))
            take = min(count - filled, int(self._lengths[local]) - offset)
            begin = int(self._begins[local]) + offset * self._dtype.itemsize
            tokens[filled : filled + take] = self._tokens.read(begin, take, self._dtype)
            place, filled = place + 1, filled + take
        return tokens


class Mixture:
    """A mixture of corpora: sample `index` is a sample of one of them, by weight.

    Each corpus has the same quota in every BLOCK of samples, and its samples are evenly spread within the block. So the
    proportions hold at every point of a run to within a block.
    """

    def __init__(self, corpora: Sequence[Sequence[np.ndarray]], weights: Sequence[float], seed: int = 0) -> None:
        """weights: relative to their sum; a corpus of positive weight gets at least one sample per block"""
        self.corpora, self.seed = list(corpora), seed
        self.quotas = _quotas(weights)
        self._block = lru_cache(maxsize=2)(self._build_block)

    def locate(self, index: int) -> tuple[int, int]:
        """(number of the corpus, index within it) of sample `index`."""
        block, place = divmod(int(index), BLOCK)
        owners, ranks = self._block(block)
        corpus = int(owners[place])
        return corpus, block * int(self.quotas[corpus]) + int(ranks[place])

    def __getitem__(self, index: int) -> np.ndarray:
        """Sample `index`, which may be any number from 0."""
        corpus, within = self.locate(index)
        return self.corpora[corpus][within]

    def _build_block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(int64 [BLOCK] corpus, int64 [BLOCK] rank among that corpus's samples) of every sample of the block."""
        phases = hashes(len(self.quotas), self.seed, block) / 2.0**64
        ranks = np.concatenate([np.arange(quota) for quota in self.quotas])
        owners = np.repeat(np.arange(len(self.quotas)), self.quotas)
        order = np.argsort((ranks + phases[owners]) / self.quotas[owners], kind="stable")
        return owners[order], ranks[order]


def _quotas(weights: Sequence[float]) -> np.ndarray:
    """int64 [n]: samples of each corpus in a block, by largest remainder, at least 1 for any positive weight."""
    shares = np.asarray(weights, float) / np.sum(weights) * BLOCK
    quotas = np.floor(shares).astype(np.int64)
    quotas[np.argsort(quotas - shares, kind="stable")[: BLOCK - quotas.sum()]] += 1
    starved = (quotas == 0) & (np.asarray(weights) > 0)
    quotas[starved] = 1
    quotas[np.argmax(quotas)] -= starved.sum()
    return quotas
