"""Near-duplicates: groups of documents with a part of their signature in common, of which leaders are kept.

1. `sign` writes the keys of a shard's documents; documents that share a key are a group.
2. `match` reads a range of keys and writes edges from the first document of each group to the others.
3. `find_components` joins the edges of all ranges, and cuts the components into tasks.
4. `split` writes a shard's keys again, sorted by component.
5. `cluster` reads some components and keeps a document unless it shares a key with one that is kept, in the order of
   the input. So A and C are both kept where only B is like both of them, unlike in a component that is one cluster.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from megagpt.data.corpus.duplicates.minhash import MinHash, bucket_keys
from megagpt.data.corpus.duplicates.tables import (
    KEYS,
    begins,
    gather,
    key_range,
    place_of,
    places_of,
    read_rows,
    table_path,
    write_table,
)
from megagpt.data.files import write_atomic

BYTES_A_KEY = 80
"""Memory that `match` takes for each key of its range, and `cluster` for each key of its documents, at most."""
BYTES_A_CANDIDATE = 350
"""Memory that `find_components` takes for each document that shares a key with another, at most."""

Similar = Callable[[int, int], bool]


def sign(folder: Path, shard: int, documents: Iterable[tuple[int, np.ndarray]], setting: MinHash) -> None:
    """Write the keys of the documents of a shard, given as (number, hashes of its runs of words): (key, place)."""
    numbers, keys = [], [np.zeros(0, np.uint64)]
    for number, runs in documents:
        keys.append(bucket_keys(runs, setting))
        numbers.append([number] * len(keys[-1]))
    places = places_of(shard, np.concatenate([np.zeros(0, np.int64), *map(np.array, numbers)]))
    write_table(folder, shard, np.column_stack([np.concatenate(keys), places]))


def match(signed: Path, edges: Path, task: int, tasks: int, first_place: int = 0) -> int:
    """Write which documents share a key of the task's range with an earlier one: (the group's first place, place).

    first_place: documents before it are of reference corpora, and pairs of them do not matter. Returns how many edges
    there are, each once.
    """
    rows = gather(signed, 2, *key_range(task, tasks))
    new = begins(rows[:, :1])
    firsts = rows[new, 1][np.cumsum(new) - 1]
    found = np.column_stack([firsts, rows[:, 1]])[~new & (rows[:, 1] >= np.uint64(first_place))]
    found = found[np.lexsort(found.T[::-1])]
    found = found[begins(found)]
    write_table(edges, task, found)
    return len(found)


def find_components(edges: Path, members: Path, tasks: int) -> int:
    """Write the component of every document that has an edge, named by its first place: (place, component).

    Edges are taken up as many at a time as there are candidates so far, so that memory grows with the candidates
    (BYTES_A_CANDIDATE each), not with their edges. `members`/bounds holds the components at which `cluster`'s tasks
    after the first begin, for about the same number of documents each. Returns the number of candidates.
    """
    forest, waiting, size = np.zeros((0, 2), np.uint64), [], 0
    for path in sorted(edges.glob("*.u64")):
        waiting.append(read_rows(path, 2))
        size += len(waiting[-1])
        if size > len(forest):
            forest, waiting, size = _joined(np.concatenate([forest, *waiting])), [], 0
    forest = _joined(np.concatenate([forest, *waiting]))
    roots = np.unique(forest[:, 0])
    rows = np.concatenate([forest[:, ::-1], np.column_stack([roots, roots])])
    write_table(members, 0, rows)
    components = np.sort(rows[:, 1])
    bounds = (
        components[[len(components) * task // tasks for task in range(1, tasks)]] if len(rows) else [0] * (tasks - 1)
    )
    write_atomic(members / "bounds", np.array(bounds, "<u8").data)
    return len(rows)


def _joined(edges: np.ndarray) -> np.ndarray:
    """Edges from the first place of each component to each of its others, sorted, of any edges: uint64 (n, 2)."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places, ends = np.unique(edges, return_inverse=True)
    ends = ends.reshape(-1, 2).astype(np.int32 if len(places) < 1 << 31 else np.int64)
    graph = coo_array((np.ones(len(ends), bool), ends.T), (len(places), len(places)))
    labels = connected_components(graph, directed=False)[1]
    firsts = places[np.unique(labels, return_index=True)[1]][labels]
    others = firsts != places
    return np.column_stack([firsts[others], places[others]])


def split(signed: Path, members: Path, parts: Path, shard: int) -> np.ndarray:
    """Write the keys of a shard's documents that are in a component: (component, key, place). Returns their numbers."""
    own = read_rows(table_path(members, 0), 2, place_of(shard), place_of(shard + 1))
    rows = read_rows(table_path(signed, shard), 2)
    at = np.searchsorted(own[:, 0], rows[:, 1])
    inside = np.isin(rows[:, 1], own[:, 0])
    write_table(parts, shard, np.column_stack([own[at[inside], 1], rows[inside]]))
    return (own[:, 0] - np.uint64(place_of(shard))).astype(np.int64)


def cluster(
    parts: Path, members: Path, found: Path, task: int, first_place: int = 0, similar: Similar | None = None
) -> int:
    """Write which documents of the task's components are not kept: (place, place of the one kept in its stead).

    first_place: documents before it are of reference corpora, which are kept whatever they are like.
    similar: whether two places that share a key are duplicates, by default all are. Returns how many are not kept.
    """
    bounds = [0, *np.fromfile(members / "bounds", "<u8").tolist(), KEYS]
    rows = gather(parts, 3, *bounds[task : task + 2])
    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    names, groups = np.unique(rows[:, 1], return_inverse=True)
    places, starts = np.unique(rows[:, 2], return_index=True)
    ends = [*starts[1:], len(rows)][: len(starts)]
    documents = ((place, groups[a:b]) for place, a, b in zip(places.tolist(), starts, ends, strict=True))
    follow = _follow(documents, len(names), first_place)
    if similar is not None:
        follow = _follow_similar(documents, first_place, similar)
    dropped = np.array(list(follow), np.uint64).reshape(-1, 2)
    write_table(found, task, dropped)
    return len(dropped)


Documents = Iterable[tuple[int, np.ndarray]]
Pairs = Iterator[tuple[int, int]]


def _follow(documents: Documents, groups: int, first_place: int) -> Pairs:
    """(place, place of the first leader that it shares a group with) of those that are no leaders."""
    nobody = KEYS - 1
    leaders = np.full(groups, nobody, np.uint64)
    for place, own in documents:
        leader = int(leaders[own].min())
        if leader == nobody or place < first_place:
            leaders[own] = np.minimum(leaders[own], np.uint64(place))
        else:
            yield place, leader


def _follow_similar(documents: Documents, first_place: int, similar: Similar) -> Pairs:
    """The same, of those that are also `similar` to the leader; a group can then have several leaders."""
    leaders: dict[int, list[int]] = {}
    for place, own in documents:
        leader = None
        if place >= first_place:
            candidates = sorted({leader for group in own.tolist() for leader in leaders.get(group, ())})
            leader = next((leader for leader in candidates if similar(leader, place)), None)
        if leader is None:
            for group in own.tolist():
                leaders.setdefault(group, []).append(place)
        else:
            yield place, leader
