"""Clusters similar documents, and describes each cluster by its most central texts and most distinctive words."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megagpt.errors import ConfigError

CENTRAL = 3
"""Number of central texts per cluster."""

WORDS = 5
"""Number of distinctive words per cluster."""

MANY = 50_000
"""With this many documents or more, k-means uses mini-batches."""

WORD = r"[^\W\d_]{2,}"
"""A word has only letters, so that names in code are split at underscores and digits."""


@dataclass(frozen=True)
class Cluster:
    """Documents near one centre."""

    rows: list[int]
    """Rows of the documents, ascending."""
    central: list[int]
    """The rows nearest to the centre, nearest first."""
    cohesion: float
    """Mean cosine between the documents and the centre."""
    words: list[str]
    """The most distinctive words, see `telling_words`."""


def find_clusters(vectors: np.ndarray, texts: Sequence[str], count: int, seed: int = 0) -> list[Cluster]:
    """At most `count` clusters by k-means, largest first; fewer if there are fewer different vectors.

    vectors: float32 [n, D], rows of norm 1, so that the nearest centre is approximately the one with the largest
    cosine. Raises ConfigError without scikit-learn, or when `count` is not between 1 and n.
    """
    if not 1 <= count <= len(vectors):
        raise ConfigError(f"--count is {count}, but the index has {len(vectors)} documents: choose 1 to {len(vectors)}")
    cluster = import_sklearn("cluster")
    settings = {"n_clusters": count, "random_state": seed, "n_init": 4}
    kind = cluster.MiniBatchKMeans if len(vectors) >= MANY else cluster.KMeans
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fewer distinct vectors than clusters; empty clusters are left out
        labels = kind(**settings).fit_predict(np.asarray(vectors))
    return sorted(describe(vectors, texts, labels), key=lambda one: (-len(one.rows), one.rows[0]))


def describe(vectors: np.ndarray, texts: Sequence[str], labels: np.ndarray) -> list[Cluster]:
    """The cluster of each label, in ascending order of the labels; labels: int [n]."""
    words = telling_words(texts, labels)
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        centre = vectors[rows].astype(np.float64).sum(0)
        cosines = vectors[rows] @ (centre / max(np.linalg.norm(centre), 1e-12))
        central = rows[np.argsort(-cosines, kind="stable")[:CENTRAL]]
        found.append(Cluster(rows.tolist(), central.tolist(), float(cosines.mean()), words[int(label)]))
    return found


def telling_words(texts: Sequence[str], labels: np.ndarray) -> dict[int, list[str]]:
    """{label: the words that distinguish its texts most from all texts, in descending order}.

    A word's score is p log(p / q), its term of a Kullback-Leibler divergence; p is the fraction of the label's texts
    that have the word, q the fraction of all texts. With a single label the most frequent words are returned.
    """
    text = import_sklearn("feature_extraction.text")
    vectorizer = text.CountVectorizer(token_pattern=WORD, binary=True, max_features=50_000)
    try:
        has_word = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word
        return {int(label): [] for label in np.unique(labels)}
    names, overall = vectorizer.get_feature_names_out(), np.asarray(has_word.mean(0)).ravel()
    found = {}
    for label in np.unique(labels):
        share = np.asarray(has_word[np.flatnonzero(labels == label)].mean(0)).ravel()
        score = share * np.log(np.maximum(share, 1e-12) / overall) if (labels != label).any() else share
        order = np.argsort(-score, kind="stable")[:WORDS]
        found[int(label)] = [str(names[word]) for word in order if score[word] > 1e-9]
    return found


def import_sklearn(module: str) -> Any:
    """A module of scikit-learn. Raises ConfigError when it is not installed."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError:
        raise ConfigError('clusters and maps need scikit-learn: pip install "megagpt[embeddings]"') from None
