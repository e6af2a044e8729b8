"""Exact duplicates: of all items with the same hash, the first in the order of the input is kept."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from megagpt.data.corpus.duplicates.tables import begins, gather, key_range, place_of, places_of, write_table

BYTES_A_ROW = 70
"""Largest memory of `find_repeated` for each hash of its range, in bytes."""


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """uint64 [texts, 2]: 128-bit hashes (XXH3), the same in every process."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def offer(folder: Path, shard: int, hashes: np.ndarray, numbers: np.ndarray | None = None) -> None:
    """Write the table of a shard's hashes.

    hashes: uint64 [n, 2]
    numbers: int [n], numbers of the hashed documents; by default 0, 1, 2, ...
    """
    numbers = np.arange(len(hashes)) if numbers is None else numbers
    write_table(folder, shard, np.column_stack([hashes, places_of(shard, numbers)]))


def find_repeated(offered: Path, found: Path, task: int, tasks: int) -> int:
    """Find repetitions in one range of hashes of the tables in `offered`; write rows (place, first place) to `found`.

    The first place with a hash is not in the result. Returns the number of repetitions. Needs up to BYTES_A_ROW bytes
    for each row in its range.
    """
    rows = gather(offered, 3, *key_range(task, tasks))
    rows = rows[np.lexsort(rows.T[[2, 1, 0]])]
    new, places = begins(rows[:, :2]), rows[:, 2]
    firsts = places[new][np.cumsum(new) - 1]
    write_table(found, task, np.column_stack([places, firsts])[~new])
    return int((~new).sum())


def found_in(found: Path, shard: int) -> dict[int, int]:
    """{number of a duplicate in the shard: place of the document that it repeats}."""
    rows = gather(found, 2, place_of(shard), place_of(shard + 1))
    return dict(zip((rows[:, 0] - np.uint64(place_of(shard))).tolist(), rows[:, 1].tolist(), strict=True))
