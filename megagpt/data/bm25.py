"""BM25, a search by words. It finds hard negatives, and it is the baseline of embedding evaluation."""

import re
from collections.abc import Sequence

import numpy as np

from megagpt.errors import ConfigError

K1 = 0.9
"""Saturation of the term frequency. Anserini's value, which BEIR's BM25 figures use (arXiv 2104.08663)."""

B = 0.4
"""Strength of the length normalization, from 0 to 1. Also Anserini's value."""

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Places where a new word begins in a name in camel case."""

_CHARACTER = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W\d_{_CHARACTER}]+|\d+")


def words(text: str) -> list[str]:
    """The words of a text or a program, in lower case: runs of letters or of digits.

    Names are cut at underscores and capitals (`readHTTPLine` gives read, http, line), because people search code with
    words of plain language. Each Chinese or Japanese character is a word. There is no stemming, and no list of words
    to leave out.
    """
    return _WORD.findall(_CAPITAL.sub(" ", text).lower())


class BM25:
    """Robertson's BM25 in Lucene's form, over a list of documents.

    score(q, d) = sum over the words w of q of ln(1 + (N - n_w + 1/2) / (n_w + 1/2)) * f / (f + K1 (1 - B + B L_d / L)),
    with f the occurrences of w in d, n_w the number of documents with w of all N, L_d the words of d, and L their mean.
    """

    def __init__(self, documents: Sequence[str]) -> None:
        """Index `documents`. Raises ConfigError without scikit-learn."""
        try:
            from sklearn.feature_extraction.text import CountVectorizer
        except ImportError:
            raise ConfigError('BM25 needs scikit-learn: pip install "megagpt[embeddings]"') from None
        self._vectorizer = CountVectorizer(analyzer=words)
        try:
            counts = self._vectorizer.fit_transform(documents).astype(np.float64).tocsr()
        except ValueError:  # no document has a word
            counts, self._vectorizer = None, None
        self._size, self._weights = len(documents), None
        if counts is None:
            return
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        holders = np.bincount(counts.indices, minlength=counts.shape[1])
        rarity = np.log1p((len(documents) - holders + 0.5) / (holders + 0.5))
        rows = np.repeat(np.arange(len(documents)), np.diff(counts.indptr))
        norm = K1 * (1 - B + B * lengths / lengths.mean())
        counts.data = rarity[counts.indices] * counts.data / (counts.data + norm[rows])
        self._weights = counts

    def scores(self, queries: Sequence[str], documents: np.ndarray | None = None) -> np.ndarray:
        """float64 [queries, documents]: scores of all documents; 0 where query and document share no word.

        documents: int [n], numbers of the documents to score; None: all
        """
        size = self._size if documents is None else len(documents)
        if self._weights is None:
            return np.zeros((len(queries), size))
        weights = self._weights if documents is None else self._weights[documents]
        return (self._vectorizer.transform(queries).astype(np.float64) @ weights.T).toarray()
