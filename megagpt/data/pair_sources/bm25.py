"""BM25 (Robertson and Zaragoza, 2009) as a sparse matrix product, for hard negatives."""

from collections.abc import Sequence

import numpy as np

from megagpt.errors import ConfigError

K1, B = 1.5, 0.75
"""Saturation of a word's count, and weight of a text's length."""
WORD = r"(?u)\w+"


class Bm25:
    """Texts that are ranked by their words. Needs scikit-learn."""

    def __init__(self, texts: Sequence[str]) -> None:
        try:
            from sklearn.feature_extraction.text import CountVectorizer
        except ImportError:
            raise ConfigError('BM25 needs scikit-learn: pip install "megagpt[embeddings]"') from None
        self._words = CountVectorizer(token_pattern=WORD)
        counts = self._words.fit_transform(texts).astype(np.float32).tocsr()
        lengths = np.asarray(counts.sum(axis=1)).ravel()
        found_in = np.bincount(counts.indices, minlength=counts.shape[1])
        rarity = np.log1p((len(texts) - found_in + 0.5) / (found_in + 0.5))  # as in Lucene: never negative
        share = K1 * (1 - B + B * lengths / lengths.mean())
        rows = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        counts.data *= (K1 + 1) / (counts.data + share[rows]) * rarity[counts.indices]
        self._weights = counts.T.tocsr()

    def scores(self, queries: Sequence[str]) -> np.ndarray:
        """float32 [queries, texts]: a word that a query repeats counts as often."""
        return (self._words.transform(queries).astype(np.float32) @ self._weights).toarray()
