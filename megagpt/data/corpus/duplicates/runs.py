"""The runs of words of documents, on disk, for the exact similarity of any two documents."""

from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np

from megagpt.data.corpus.duplicates.tables import places_of, read_rows, shard_and_number, table_path, write_table
from megagpt.data.files import atomic_file

CACHE_BYTES = 256 << 20
"""Size of the cache of recently compared documents' runs."""


def write_runs(folder: Path, shard: int, documents: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write the runs of documents of a shard.

    documents: (number, uint64 [n] hashes of its runs of words, sorted, without repetition) of each document
    """
    rows, offset = [], 0
    with atomic_file(_data(folder, shard)) as file:
        for number, runs in documents:
            file.write(runs.astype("<u8", copy=False).data)
            rows.append((number, offset, len(runs)))
            offset += len(runs)
    table = np.array(rows, np.uint64).reshape(-1, 3)
    table[:, 0] = places_of(shard, table[:, 0])
    write_table(folder, shard, table)


def _data(folder: Path, shard: int) -> Path:
    return folder / f"{shard:06d}.runs"


class Runs:
    """Reads the files of `write_runs` of all shards."""

    def __init__(self, folder: Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder = folder
        self._limit, self._bytes = cache_bytes, 0
        self._held: OrderedDict[int, np.ndarray] = OrderedDict()
        self._index = lru_cache(maxsize=64)(lambda shard: read_rows(table_path(folder, shard), 3))

    def similarity(self, one: int, other: int) -> float:
        """The Jaccard similarity of the runs of the documents at two places."""
        first, second = self._of(one), self._of(other)
        shared = len(np.intersect1d(first, second, assume_unique=True))
        return shared / max(1, len(first) + len(second) - shared)

    def _of(self, place: int) -> np.ndarray:
        if place in self._held:
            self._held.move_to_end(place)
            return self._held[place]
        shard = shard_and_number(place)[0]
        index = self._index(shard)
        offset, length = index[np.searchsorted(index[:, 0], np.uint64(place)), 1:].tolist()
        with _data(self.folder, shard).open("rb") as file:
            file.seek(8 * offset)
            runs = np.fromfile(file, "<u8", length)
        self._held[place] = runs
        self._bytes += runs.nbytes
        while self._bytes > self._limit and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return runs
