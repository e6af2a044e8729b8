"""Sorted tables on disk. A task reads only the rows of its range of keys."""

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megagpt.data.files import write_atomic

KEYS = 1 << 64
"""Number of possible keys."""

_SHARD_BITS = 32


def place_of(shard: int, number: int = 0) -> int:
    """The place of document (or line) `number` of a shard: a 64-bit key that sorts by the order of the input."""
    return shard << _SHARD_BITS | number


def places_of(shard: int, numbers: np.ndarray) -> np.ndarray:
    """uint64 [n]: the places of many documents of a shard."""
    return numbers.astype(np.uint64) | np.uint64(place_of(shard))


def shard_and_number(place: int) -> tuple[int, int]:
    """The arguments from which `place_of` made `place`."""
    return place >> _SHARD_BITS, place & ((1 << _SHARD_BITS) - 1)


def key_range(task: int, tasks: int) -> tuple[int, int]:
    """The range [low, high) of keys of a task. The ranges of all `tasks` tasks cover all keys."""
    return KEYS * task // tasks, KEYS * (task + 1) // tasks


def table_path(folder: Path, number: int) -> Path:
    """Path of table `number` of a folder."""
    return folder / f"{number:06d}.u64"


def write_table(folder: Path, number: int, rows: np.ndarray) -> None:
    """Write `rows`, uint64 (rows, columns), sorted by their first column; rows of equal keys keep their order."""
    order = np.argsort(rows[:, 0], kind="stable")
    write_atomic(table_path(folder, number), rows[order].astype("<u8", copy=False).data)


def gather(folder: Path, columns: int, low: int = 0, high: int = KEYS) -> np.ndarray:
    """The rows of all tables in `folder` whose keys are in [low, high), sorted by key: uint64 (rows, columns).

    Rows of equal keys are in the order of the tables.
    """
    rows = np.concatenate([np.zeros((0, columns), np.uint64), *_parts(folder, columns, low, high)])
    return rows[np.argsort(rows[:, 0], kind="stable")]


def begins(rows: np.ndarray) -> np.ndarray:
    """bool [rows]: whether each of the sorted rows [rows, columns] differs from the one before it."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return new


def _parts(folder: Path, columns: int, low: int, high: int) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob("*.u64")):
        part = read_rows(path, columns, low, high)
        if len(part):
            yield part


def read_rows(path: Path, columns: int, low: int = 0, high: int = KEYS) -> np.ndarray:
    """The rows of one table whose keys are in [low, high): uint64 (rows, columns)."""
    width = 8 * columns
    with path.open("rb") as file:
        count = path.stat().st_size // width
        first, last = (_find(file, count, width, key) for key in (low, high))
        file.seek(first * width)
        return np.fromfile(file, "<u8", (last - first) * columns).reshape(-1, columns)


def _find(file: BinaryIO, count: int, width: int, key: int) -> int:
    """Number of the first of `count` rows whose key is not less than `key`."""
    if key in (0, KEYS):
        return count if key else 0

    def key_at(row: int) -> int:
        file.seek(row * width)
        return int.from_bytes(file.read(8), "little")

    return bisect_left(range(count), key, key=key_at)
