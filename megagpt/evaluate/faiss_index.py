"""Searches an index with faiss: exactly in memory, or approximately if comparing all vectors takes too long."""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from megagpt.data.files import atomic_file
from megagpt.errors import ConfigError
from megagpt.log import progress

log = logging.getLogger(__name__)

GRAPH = "hnsw.faiss"
"""File name of the graph, in the folder of its index."""

LINKS = 32
"""Number of links per document in the graph."""

EFFORT = 128
"""Smallest number of candidates when the graph is built and searched; a larger number is more accurate and slower."""

ROWS = 1 << 14
"""Number of documents that are added at a time."""


def flat_index(vectors: np.ndarray) -> Any:
    """An index that compares a query with all vectors, float32 [n, D]. Raises ConfigError without faiss."""
    return _filled(import_faiss().IndexFlatIP(vectors.shape[1]), vectors, "reading vectors")


def graph_index(folder: Path, vectors: np.ndarray) -> Any:
    """A graph of near vectors (HNSW; Malkov and Yashunin, arXiv 1603.09320), read from `folder` or built and saved.

    vectors: float32 [n, D]. Raises ConfigError without faiss, DataError when the graph cannot be written.
    """
    faiss, path = import_faiss(), folder / GRAPH
    if path.exists():
        try:
            graph = faiss.read_index(str(path))
            if graph.ntotal == len(vectors) and np.array_equal(graph.reconstruct(0), vectors[0]):
                return graph
            log.warning("%s belongs to other vectors: it is built again", path)
        except RuntimeError as error:
            log.warning("%s cannot be read (%s): it is built again", path, str(error).splitlines()[-1])
    graph = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EFFORT
    _filled(graph, vectors, "building a graph")
    with atomic_file(path) as file:
        faiss.write_index(graph, faiss.PyCallbackIOWriter(file.write))
    return graph


def flat_candidates(index: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows of the k largest dot products for each query, int64 [m, k]; queries: float32 [m, D]."""
    return index.search(np.array(queries), k)[1]


def graph_candidates(graph: Any, queries: np.ndarray, k: int) -> np.ndarray:
    """Rows of about the k largest dot products for each query, int64 [m, k]; -1 for missing results."""
    graph.hnsw.efSearch = max(EFFORT, 2 * k)
    return graph.search(np.array(queries), k)[1]


def import_faiss() -> Any:
    """The module faiss. Raises ConfigError when it is not installed."""
    try:
        import faiss
    except ImportError:
        raise ConfigError('this backend needs faiss: pip install "megagpt[embeddings]"') from None
    return faiss


def _filled(index: Any, vectors: np.ndarray, what: str) -> Any:
    with progress(len(vectors), "documents", what) as bar:
        for start in range(0, len(vectors), ROWS):
            part = np.array(vectors[start : start + ROWS])
            index.add(part)
            bar.update(len(part))
    return index
