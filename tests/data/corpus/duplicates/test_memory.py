"""Tasks hold as many bytes as they say, which is what a cluster is planned by."""

import tracemalloc

import numpy as np
import pytest
import scipy.sparse.csgraph  # noqa: F401 (here, and not where memory is measured)

from megagpt.data.corpus.duplicates import exact, near
from megagpt.data.corpus.duplicates.tables import places_of, write_table

ROWS = 200_000


def peak(function, *arguments) -> int:
    """Bytes that were held at once, at most, while a function ran."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def dice() -> np.random.Generator:
    return np.random.default_rng(0)


def test_exact(tmp_path, dice):
    hashes = dice.integers(0, 1 << 64, (ROWS, 2), dtype=np.uint64)
    for shard in range(4):
        exact.offer(tmp_path / "offered", shard, hashes[dice.integers(0, ROWS, ROWS // 4)])
    used = peak(exact.find_repeated, tmp_path / "offered", tmp_path / "found", 0, 1) / ROWS
    assert exact.BYTES_A_ROW / 2 < used < exact.BYTES_A_ROW
    half = peak(exact.find_repeated, tmp_path / "offered", tmp_path / "found", 0, 2) / ROWS
    assert half < 0.6 * used


def signed(folder, dice, documents: int, shards: int) -> None:
    """Keys of documents that come in pairs which share most of their 14 keys."""
    keys = dice.integers(0, 1 << 64, (documents // 2, 14), dtype=np.uint64)
    keys = np.concatenate(
        [keys, np.where(dice.random(keys.shape) < 0.2, dice.integers(0, 1 << 64, keys.shape, np.uint64), keys)]
    )
    for shard, part in enumerate(np.array_split(keys.astype(np.uint64), shards)):
        places = np.repeat(places_of(shard, np.arange(len(part))), 14)
        write_table(folder / "signed", shard, np.column_stack([part.reshape(-1), places]))


def test_near(tmp_path, dice):
    documents = ROWS // 10
    signed(tmp_path, dice, documents, 4)
    paths = [tmp_path / name for name in ("signed", "edges", "members", "split", "found")]
    matched = [peak(near.match, *paths[:2], task, 8) / (14 * documents / 8) for task in range(8)]
    assert near.BYTES_A_KEY / 3 < max(matched) < near.BYTES_A_KEY
    joined = peak(near.find_components, *paths[1:3], 2) / documents
    assert near.BYTES_A_CANDIDATE / 3 < joined < near.BYTES_A_CANDIDATE
    for shard in range(4):
        near.split(paths[0], paths[2], paths[3], shard)
    clustered = [peak(near.cluster, paths[3], paths[2], paths[4], task) / (14 * documents / 2) for task in range(2)]
    assert near.BYTES_A_KEY / 3 < max(clustered) < near.BYTES_A_KEY


def test_components_hold_candidates_not_edges(tmp_path, dice):
    """Many more edges among the same documents."""
    pairs = np.sort(dice.integers(0, 5000, (ROWS, 2)), axis=1).astype(np.uint64)
    for number, part in enumerate(np.array_split(pairs, 400)):
        write_table(tmp_path / "edges", number, part)
    used = peak(near.find_components, tmp_path / "edges", tmp_path / "members", 1)
    assert used < near.BYTES_A_CANDIDATE * 5000 < ROWS * 16
