"""Near-duplicates: documents that share a part of their signature form groups, and the leaders of groups are kept.

1. `sign` writes the keys of a shard's documents; documents that share a key are a group.
2. `match` reads a range of keys and writes edges from the first document of each group to the others.
3. `find_components` joins the edges of all ranges, and divides the components among tasks.
4. `split` writes a shard's keys again, sorted by component.
5. `cluster` reads some components and, in the order of the input, keeps a document unless it shares a key with a kept
   one. So if B is similar to A and to C, but A and C are not similar, both A and C are kept. (Keeping one document per
   component would drop C.)
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
"""Largest memory of `match` for each key of its range, and of `cluster` for each key of its documents, in bytes."""
BYTES_A_CANDIDATE = 350
"""Largest memory of `find_components` for each document that shares a key with another one, in bytes."""

Similar = Callable[[int, int], bool]


def sign(folder: Path, shard: int, documents: Iterable[tuple[int, np.ndarray]], setting: MinHash) -> None:
    """Write the keys of a shard's documents: rows (key, place).

    documents: (number, uint64 [n] hashes of its runs of words) of each document
    """
    numbers, keys = [], [np.zeros(0, np.uint64)]
    for number, runs in documents:
        keys.append(bucket_keys(runs, setting))
        numbers.append([number] * len(keys[-1]))
    places = places_of(shard, np.concatenate([np.zeros(0, np.int64), *map(np.array, numbers)]))
    write_table(folder, shard, np.column_stack([np.concatenate(keys), places]))


def match(signed: Path, edges: Path, task: int, tasks: int, first_place: int = 0) -> int:
    """Write the documents that share a key of the task's range with an earlier one: rows (group's first place, place).

    first_place: documents before it belong to reference corpora, and pairs of them are ignored

    Returns the number of distinct edges.
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
    """Write the component of every document that has an edge: rows (place, component). A component is its first place.

    Each round adds as many edges as there are candidates so far, so memory grows with the candidates (BYTES_A_CANDIDATE
    each), not with their edges. `members`/bounds gets the first component of each of `cluster`'s tasks but the first,
    so that all tasks have about the same number of documents. Returns the number of candidates.
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
    """uint64 [n, 2]: for each component of `edges`, the edges from its first place to its other places, sorted."""
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
    """Write the keys of a shard's documents in components: rows (component, key, place).

    Returns the numbers of these documents, int64 [n].
    """
    own = read_rows(table_path(members, 0), 2, place_of(shard), place_of(shard + 1))
    rows = read_rows(table_path(signed, shard), 2)
    at = np.searchsorted(own[:, 0], rows[:, 1])
    inside = np.isin(rows[:, 1], own[:, 0])
    write_table(parts, shard, np.column_stack([own[at[inside], 1], rows[inside]]))
    return (own[:, 0] - np.uint64(place_of(shard))).astype(np.int64)


def cluster(
    parts: Path, members: Path, found: Path, task: int, first_place: int = 0, similar: Similar | None = None
) -> int:
    """Write the documents of the task's components that are not kept: rows (place, place of the kept leader).

    first_place: documents before it belong to reference corpora, and are always kept
    similar: whether two places that share a key are duplicates; None: they always are

    Returns the number of documents that are not kept.
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
    """(place, place of the first leader in one of its groups) for each document that is not a leader."""
    nobody = KEYS - 1
    leaders = np.full(groups, nobody, np.uint64)
    for place, own in documents:
        leader = int(leaders[own].min())
        if leader == nobody or place < first_place:
            leaders[own] = np.minimum(leaders[own], np.uint64(place))
        else:
            yield place, leader


def _follow_similar(documents: Documents, first_place: int, similar: Similar) -> Pairs:
    """As `_follow`, but a document follows only a leader to which it is `similar`: a group may have several leaders."""
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
