"""An index of embedded documents (vectors.npy, texts.jsonl and about.json in a folder), with search and duplicates."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from megagpt.data.files import atomic_file
from megagpt.data.texts import Text
from megagpt.errors import ConfigError, DataError
from megagpt.evaluate import faiss_index
from megagpt.evaluate.vectors import describe_checkpoint, write_npy
from megagpt.log import progress

log = logging.getLogger(__name__)

VECTORS, TEXTS, ABOUT = "vectors.npy", "texts.jsonl", "about.json"

BLOCK_ROWS = 1 << 16
"""Largest number of documents that are compared with the queries at a time."""

PRODUCTS = 1 << 26
"""Largest number of query-document products in memory, 256 MiB of float32."""

LINE_BYTES = 1 << 26
"""Bytes of a file that are searched for line ends at a time; the search needs the same amount of memory again."""

SPARE = 16
"""Additional candidates, because float32 rounding can change the order of the last ones."""

ROUNDING = 1e-6
"""Approximate rounding error of a float32 product of two vectors of norm 1."""

Backend = Literal["exact", "faiss", "hnsw"]
"""exact: a matrix product. faiss: the same by faiss, in memory. hnsw: approximate search with faiss's graph, for very
many documents."""


class Lines:
    """The JSON objects of a file with one object per line, read on access."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        parts = [np.empty(0, np.int64)]
        for start in range(0, len(self.bytes), LINE_BYTES):
            parts.append(np.flatnonzero(self.bytes[start : start + LINE_BYTES] == ord("\n")) + start)
        self.ends = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The object in line `row`, from 0. Raises DataError when the line is damaged."""
        start = int(self.ends[row - 1]) + 1 if row else 0
        try:
            record = json.loads(self.bytes[start : self.ends[row]].tobytes())
            if not isinstance(record["text"], str) or not isinstance(record["record"], dict):
                raise TypeError("not a text with its record")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path}:{row + 1} is damaged ({error}): make the index again") from None
        return record


@dataclass(frozen=True)
class Index:
    """Documents and their vectors; a document's number is its row, from 0."""

    folder: Path
    about: dict[str, Any]
    """The content of about.json, from `make_vectors`."""
    vectors: np.ndarray
    """Float32 [n, D], rows of norm 1, mapped from the file."""
    texts: Lines
    """n objects with the keys "text" and "record", which has the other fields of the input record."""

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Open an index. Raises DataError when the folder has no index, or an unfinished or damaged one."""
        about_path = folder / ABOUT
        if not about_path.exists():
            begun = (folder / f"{VECTORS}.parts").exists() or (folder / VECTORS).exists()
            raise DataError(
                f"{folder} is an unfinished index: run the same `megagpt search index` command again"
                if begun
                else f"{folder} is not an index: make one with `megagpt search index`"
            )
        try:
            about = json.loads(about_path.read_bytes())
            shape = (about["count"], about["dimensions"])
            about["job"]["checkpoint"]["manifest_sha256"]
            vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
            texts = Lines(folder / TEXTS)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"the index {folder} is damaged ({error}): remove it and make it again") from None
        if vectors.shape != shape or vectors.dtype != np.float32 or len(texts) != shape[0]:
            raise DataError(
                f"the index {folder} is damaged: {ABOUT} names {shape[0]} vectors of {shape[1]} dimensions, but "
                f"{VECTORS} has {vectors.shape} {vectors.dtype} and {TEXTS} {len(texts)} lines: make it again"
            )
        return cls(folder, about, vectors, texts)

    def check_checkpoint(self, folder: Path) -> None:
        """Raise ConfigError when the index was made with a checkpoint other than `folder`."""
        made_by, given = self.about["job"]["checkpoint"], describe_checkpoint(folder)
        if made_by["manifest_sha256"] != given["manifest_sha256"]:
            raise ConfigError(
                f"the index {self.folder} was made with {made_by['folder']}, but {folder} is another checkpoint: "
                "vectors of two models are not comparable. Make an index with it, or give the index's checkpoint"
            )

    def check_row(self, row: int) -> None:
        """Raise ConfigError when there is no document `row`."""
        if not 0 <= row < len(self.vectors):
            raise ConfigError(f"there is no document {row}: the index has 0 to {len(self.vectors) - 1}")

    def search(self, queries: np.ndarray, k: int, backend: Backend = "exact") -> tuple[np.ndarray, np.ndarray]:
        """The k documents (fewer if there are fewer) most similar to each query, best first.

        queries: float32 [m, D], rows of norm 1. Returns cosines, float64 [m, k], and rows, int64 [m, k]. Of equal
        scores the lower row is first; if more than `SPARE` documents share the last score, any of them may be returned.
        Raises ConfigError if the backend needs faiss, which is not installed.
        """
        k = min(k, len(self.vectors))
        wanted = min(k + SPARE, len(self.vectors))
        candidates = None
        if backend == "faiss":
            candidates = faiss_index.flat_candidates(self.flat, queries, wanted)
        elif backend == "hnsw":
            candidates = faiss_index.graph_candidates(self.graph, queries, wanted)
        if candidates is None or (candidates < 0).any():  # the graph search found too few
            candidates = _exact_candidates(self.vectors, queries, wanted)
        return _best_of(self.vectors, queries, candidates, k)

    @cached_property
    def flat(self) -> Any:
        """A faiss index with all vectors in memory."""
        return faiss_index.flat_index(self.vectors)

    @cached_property
    def graph(self) -> Any:
        """The folder's graph, built if it does not exist yet."""
        return faiss_index.graph_index(self.folder, self.vectors)

    def neighbours(self, row: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k documents most similar to document `row`, without it: scores, float64 [k], and rows, int64 [k]."""
        self.check_row(row)
        scores, rows = self.search(self.vectors[row : row + 1], k + 1)
        others = rows[0] != row
        return scores[0][others][:k], rows[0][others][:k]


def nearest(vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row the k most similar other rows (fewer if there are fewer): cosines and rows, both [n, k].

    vectors: float32 [n, D], rows of norm 1.
    """
    k = min(k, len(vectors) - 1)
    scores, rows = [], []
    for start in range(0, len(vectors), 1024):
        part = vectors[start : start + 1024]
        wanted = min(k + 1 + SPARE, len(vectors))
        found = _best_of(vectors, part, _exact_candidates(vectors, part, wanted), wanted)
        for own, (own_scores, own_rows) in enumerate(zip(*found, strict=True), start):
            others = own_rows != own
            scores.append(own_scores[others][:k])
            rows.append(own_rows[others][:k])
    return np.array(scores), np.array(rows)


def publish_index(folder: Path, blocks: Sequence[Path], about: dict[str, Any], texts: Iterator[Text]) -> None:
    """Write vectors.npy and texts.jsonl of an index, and remove the graph of an earlier index in the folder.

    blocks: .npy files of vectors. texts: the texts of the vectors, in the same order.
    """

    def line(one: Text) -> bytes:
        return json.dumps(one._asdict(), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"

    (folder / faiss_index.GRAPH).unlink(missing_ok=True)
    with atomic_file(folder / TEXTS) as file:
        file.writelines(map(line, texts))
    write_npy(folder / VECTORS, blocks, about["count"], about["dimensions"])


def _exact_candidates(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest products for each query, int64 [m, k], computed in blocks of documents."""
    best, rows, asked = None, None, torch.from_numpy(np.array(queries))
    height = max(1, min(BLOCK_ROWS, PRODUCTS // max(1, len(queries))))
    for start in range(0, len(vectors), height):
        block = torch.from_numpy(np.array(vectors[start : start + height]))
        found = torch.topk(asked @ block.T, min(k, len(block)))
        if best is None:
            best, rows = found.values, found.indices
            continue
        joined, all_rows = torch.cat([best, found.values], 1), torch.cat([rows, found.indices + start], 1)
        best, chosen = torch.topk(joined, min(k, joined.shape[1]))
        rows = all_rows.gather(1, chosen)
    return rows.numpy()


def _best_of(vectors: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidates by float64 products; of equal ones the lower row is first."""
    scores = np.empty((len(queries), k))
    rows = np.empty((len(queries), k), np.int64)
    for number, (query, found) in enumerate(zip(queries, candidates, strict=True)):
        exact = (vectors[found].astype(np.float64) * query.astype(np.float64)).sum(1)
        order = np.lexsort((found, -exact))[:k]
        scores[number], rows[number] = exact[order], found[order]
    return scores, rows


def find_duplicates(vectors: np.ndarray, above: float, block: int = 2048) -> list[list[int]]:
    """Groups of rows that are connected by chains of cosines of at least `above`; largest first, rows ascending.

    vectors: float32 [n, D], rows of norm 1. Compares all pairs, n^2 D operations, in blocks of `block` x `block`.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(vectors)
    labels = np.arange(count)
    starts = range(0, count, block)
    with progress(len(starts) * (len(starts) + 1) // 2, "blocks", "comparing") as bar:
        for first in starts:
            left = torch.from_numpy(np.array(vectors[first : first + block]))
            for second in range(first, count, block):
                right = torch.from_numpy(np.array(vectors[second : second + block]))
                pairs = (left @ right.T >= above - ROUNDING).nonzero().numpy() + np.array([first, second])
                pairs = pairs[pairs[:, 0] < pairs[:, 1]]
                if len(pairs):
                    # Each row is also connected with the first row of its component so far.
                    a, b = np.concatenate([pairs, np.stack([np.arange(count), labels], 1)]).T
                    edges = coo_array((np.ones(len(a), bool), (a, b)), (count, count))
                    components = connected_components(edges, directed=False)[1]
                    labels = np.unique(components, return_index=True)[1][components]
                bar.update()
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = [group.tolist() for group in groups if len(group) > 1]
    return sorted(found, key=lambda group: (-len(group), group[0]))
