"""Exact duplicates: of everything that has the same hash, the first in the order of the input stays."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xxhash

from megagpt.data.corpus.duplicates.tables import begins, gather, key_range, place_of, places_of, write_table

BYTES_A_ROW = 70
"""Memory that `find_repeated` takes for each hash of its range, at most."""


def hash_texts(texts: Iterable[str]) -> np.ndarray:
    """128-bit hashes of texts, the same in every process: uint64 (texts, 2)."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode()) for text in texts)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def offer(folder: Path, shard: int, hashes: np.ndarray, numbers: np.ndarray | None = None) -> None:
    """Write the table of a shard's hashes, uint64 (n, 2), of the documents `numbers`, by default 0, 1, 2, ..."""
    numbers = np.arange(len(hashes)) if numbers is None else numbers
    write_table(folder, shard, np.column_stack([hashes, places_of(shard, numbers)]))


def find_repeated(offered: Path, found: Path, task: int, tasks: int) -> int:
    """Of the tables in `offered`, write to `found` the table of what an earlier place has: (place, the first place).

    The task looks at its range of hashes, and returns how many it found. It holds BYTES_A_ROW for each row of it.
    """
    rows = gather(offered, 3, *key_range(task, tasks))
    rows = rows[np.lexsort(rows.T[[2, 1, 0]])]
    new, places = begins(rows[:, :2]), rows[:, 2]
    firsts = places[new][np.cumsum(new) - 1]
    write_table(found, task, np.column_stack([places, firsts])[~new])
    return int((~new).sum())


def found_in(found: Path, shard: int) -> dict[int, int]:
    """What was found of a shard: the numbers of its duplicates, each with the place of what it repeats."""
    rows = gather(found, 2, place_of(shard), place_of(shard + 1))
    return dict(zip((rows[:, 0] - np.uint64(place_of(shard))).tolist(), rows[:, 1].tolist(), strict=True))
