"""The search for duplicates as steps of datatrove pipelines. Importing this module needs datatrove."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from megagpt.data.corpus.duplicates import near
from megagpt.data.corpus.duplicates.exact import find_repeated
from megagpt.data.corpus.duplicates.runs import Runs, write_runs
from megagpt.data.corpus.duplicates.tables import read_rows, shard_and_number, table_path
from megagpt.data.corpus.executors import Phase
from megagpt.data.corpus.task import Task
from megagpt.data.files import write_atomic

MOST_RANGES = 500
"""Largest number of ranges. Each task opens a file of every shard, so more tasks would only read less of each file."""

SIGNED = "signatures"
"""Folder of the signatures that near.sign writes; `near_phases` reads them."""
NEAR = "near"
"""Folder of the near-duplicates that are found."""
LARGEST = 20
"""Number of clusters that each task of Cluster lists."""

Documents = Iterable[tuple[int, np.ndarray]]
RunsOf = Callable[[Path, int, set[int]], Documents]
"""Called with (work, shard, numbers of documents); returns (number, hashes of its runs of words) of each document."""


def ranges(shards: int) -> int:
    """Number of tasks that compare the documents of `shards` shards; each task then holds about one shard's hashes."""
    return min(shards, MOST_RANGES)


def write_names(work: Path, shard: int, names: Sequence[str]) -> None:
    """Write the names of a shard's documents, for `name_of`."""
    write_atomic(work / "names" / f"{shard:06d}.json", json.dumps(names).encode())


@lru_cache(maxsize=16)
def _names(work: Path, shard: int) -> list[str]:
    return json.loads((work / "names" / f"{shard:06d}.json").read_bytes())


def name_of(work: Path, place: int) -> str:
    """The name of the document at a place."""
    shard, number = shard_and_number(place)
    return _names(work, shard)[number]


class FindRepeated(Task):
    """Finds repeated hashes in the tables of one folder."""

    type = "DEDUP"

    def __init__(self, work: Path, offered: str, found: str):
        super().__init__(work)
        self.offered, self.found, self.name = offered, found, found

    def do(self, rank: int, tasks: int) -> None:
        """Look at a range of hashes."""
        self.stat_update(
            "duplicates", value=find_repeated(self.work / self.offered, self.work / self.found, rank, tasks)
        )


class Match(Task):
    """Finds documents that share a part of their signature."""

    type = "DEDUP"
    name = "match"

    def __init__(self, work: Path, first_place: int):
        super().__init__(work)
        self.first_place = first_place

    def do(self, rank: int, tasks: int) -> None:
        """Look at a range of keys."""
        self.stat_update(
            "edges", value=near.match(self.work / SIGNED, self.work / "edges", rank, tasks, self.first_place)
        )


class FindComponents(Task):
    """Finds the connected components of documents that share a part of their signature."""

    type = "DEDUP"
    name = "components"

    def __init__(self, work: Path, clusters: int):
        super().__init__(work)
        self.clusters = clusters

    def do(self, rank: int, tasks: int) -> None:
        """Look at the edges of all ranges."""
        count = near.find_components(self.work / "edges", self.work / "members", self.clusters)
        self.stat_update("candidates", value=count)


class Split(Task):
    """Sorts a shard's signatures by component and, where candidates are verified, writes their runs of words."""

    type = "DEDUP"
    name = "split"

    def __init__(self, work: Path, runs_of: RunsOf | None):
        super().__init__(work)
        self.runs_of = runs_of

    def do(self, rank: int, tasks: int) -> None:
        """Look at a shard."""
        numbers = near.split(self.work / SIGNED, self.work / "members", self.work / "split", rank)
        if self.runs_of is not None:
            write_runs(self.work / "runs", rank, self.runs_of(self.work, rank, set(numbers.tolist())))


class Cluster(Task):
    """Finds the documents of some components that are similar to a kept one."""

    type = "DEDUP"
    name = "cluster"

    def __init__(self, work: Path, first_place: int, verify: float | None):
        super().__init__(work)
        self.first_place, self.verify = first_place, verify

    def do(self, rank: int, tasks: int) -> None:
        """Look at the components of one task."""
        folders = [self.work / name for name in ("split", "members", NEAR)]
        similar = None if self.verify is None else partial(_similar, Runs(self.work / "runs"), self.verify)
        self.stat_update("duplicates", value=near.cluster(*folders, rank, self.first_place, similar))
        self._describe(rank)

    def _describe(self, rank: int) -> None:
        """Write the number of clusters by size, and the places of the leaders of the largest clusters."""
        leaders, counts = np.unique(read_rows(table_path(self.work / NEAR, rank), 2)[:, 1], return_counts=True)
        powers = np.ceil(np.log2(counts + 1)).astype(int)  # with the leader: 2, 3 to 4, 5 to 8, ...
        names = ["2", *(f"{2 ** (power - 1) + 1} to {2**power}" for power in range(2, 64))]
        sizes = {
            names[power - 1]: int(count) for power, count in zip(*np.unique(powers, return_counts=True), strict=True)
        }
        order = np.lexsort([leaders, -counts])[:LARGEST]
        largest = np.column_stack([leaders[order], counts[order].astype(np.uint64)]).tolist()
        write_atomic(
            self.work / "clusters" / f"{rank:06d}.json", json.dumps({"sizes": sizes, "largest": largest}).encode()
        )


def _similar(runs: Runs, least: float, one: int, other: int) -> bool:
    return runs.similarity(one, other) >= least


def near_phases(
    work: Path, shards: int, first_place: int = 0, verify: float | None = None, runs_of: RunsOf | None = None
) -> list[Phase]:
    """The phases that find near-duplicates among `shards` shards with signatures.

    first_place: place of the first document that does not belong to a reference corpus
    verify: smallest Jaccard similarity of duplicates, computed from their runs of words; None: no check
    runs_of: returns the runs of words of documents; needed with `verify`
    """
    tasks = ranges(shards)
    return [
        Phase("match", [Match(work, first_place)], tasks),
        Phase("components", [FindComponents(work, tasks)], 1),
        Phase("split", [Split(work, None if verify is None else runs_of)], shards),
        Phase("cluster", [Cluster(work, first_place, verify)], tasks),
    ]
