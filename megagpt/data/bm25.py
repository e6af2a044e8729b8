"""BM25, a search by words: it finds hard negatives, and embeddings are measured against it."""

import re
from collections.abc import Sequence

import numpy as np

from megagpt.errors import ConfigError

K1 = 0.9
"""How soon further occurrences of a word stop to count; Anserini's value, with which BEIR's BM25 figures were made."""

B = 0.4
"""How much longer documents are discounted, from 0 to 1; Anserini's as well."""

_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where a name in camel case has its next word."""

_CHARACTER = r"\u3040-\u30ff\u3400-\u9fff"
_WORD = re.compile(rf"[{_CHARACTER}]|[^\W\d_{_CHARACTER}]+|\d+")


def words(text: str) -> list[str]:
    """The words of a text or a program, in lower case: runs of letters or of digits.

    Names are cut at underscores and capitals (`readHTTPLine` is read, http, line), since code is searched by words of
    plain language; a Chinese or Japanese character is a word. Nothing is stemmed, and no word is left out.
    """
    return _WORD.findall(_CAPITAL.sub(" ", text).lower())


class BM25:
    """Robertson's BM25 in Lucene's form, over some documents.

    score(q, d) = sum over the words w of q of ln(1 + (N - n_w + 1/2) / (n_w + 1/2)) * f / (f + K1 (1 - B + B L_d / L)),
    with f the occurrences of w in d, n_w the number of documents with w of all N, L_d the words of d, and L their mean.
    """

    def __init__(self, documents: Sequence[str]) -> None:
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
        """float64 [queries, documents], of all documents or those with the given numbers; 0 without a common word."""
        size = self._size if documents is None else len(documents)
        if self._weights is None:
            return np.zeros((len(queries), size))
        weights = self._weights if documents is None else self._weights[documents]
        return (self._vectorizer.transform(queries).astype(np.float64) @ weights.T).toarray()
