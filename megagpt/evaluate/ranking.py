"""Metrics of rankings and similarities, in NumPy only, so that training can log them too.

Search metrics equal trec_eval's; `tests/evaluate/test_ranking.py` compares them with pytrec_eval.
"""

from collections.abc import Callable, Sequence

import numpy as np

MRR_DEPTH = 10
NDCG_DEPTH = 10

Scores = Callable[[np.ndarray], np.ndarray]
"""Maps indices of m pairs, int64 [m], to scores of their queries and positives, float [m, m]."""


def spearman(similarities: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation of two arrays [n]: Pearson's correlation of the ranks; ties share a mean rank.

    NaN if all values of an array are equal or one value is NaN.
    """
    return pearson(_mean_ranks(similarities), _mean_ranks(scores))


def pearson(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two arrays [n], in float64; NaN if all values of an array are equal."""
    first, second = (np.asarray(values, np.float64) for values in (first, second))
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def search_among_candidates(
    queries: np.ndarray,
    positives: np.ndarray,
    candidates: int = 1000,
    seed: int = 0,
    groups: Sequence[int] | np.ndarray | None = None,
) -> dict[str, float]:
    """Metrics of finding each query's positive among `candidates` positives by inner product; see `search_by_scores`.

    queries, positives: float32 [n, H], rows of norm 1; row i of both belongs to pair i. groups: int [n], the positives'
    text ids, which are equal for the same text. Raises ValueError for different shapes.
    """
    if queries.shape != positives.shape:
        raise ValueError(f"{queries.shape} queries do not match {positives.shape} positives")

    def scores(chosen: np.ndarray) -> np.ndarray:
        return queries[chosen] @ positives[chosen].T

    return search_by_scores(scores, len(queries), candidates, seed, groups)


def search_by_scores(
    scores: Scores, count: int, candidates: int, seed: int, groups: Sequence[int] | np.ndarray | None = None
) -> dict[str, float]:
    """Mean reciprocal rank and recall of `count` pairs, shuffled by `seed` and cut into blocks of `candidates`.

    As in CodeSearchNet (arXiv 1909.09436), a query's candidates are the positives of its block. The remaining queries
    search among the last `candidates` positives, so that all queries have the same number of candidates. Candidates
    with the positive's group do not compete. Of equal scores the positive gets the mean rank, so that constant scores
    are no better than chance.

    Returns mrr, recall_at_1 and recall_at_10; chance_mrr, chance_recall_at_1 and chance_recall_at_10, the expected
    values for random scores; and candidates, fewer if there are fewer pairs. Raises ValueError without pairs and for a
    score that is NaN.
    """
    if count < 1 or candidates < 1:
        raise ValueError(f"a search needs pairs and candidates, not {count} and {candidates}")
    groups = np.arange(count) if groups is None else np.asarray(groups)
    order = np.random.default_rng(seed).permutation(count)
    candidates = min(candidates, count)
    found = []
    for start in range(0, count, candidates):
        block = order[min(start, count - candidates) :][:candidates]
        own = slice(start - count, None) if start > count - candidates else slice(None)  # not yet counted queries
        found.append([values[own] for values in _block_ranks(scores(block), groups[block])])
    ranks, sizes = (np.concatenate(values) for values in zip(*found, strict=True))
    harmonic = np.cumsum(1 / np.arange(1, sizes.max() + 1))
    return {
        "mrr": float(np.mean(1 / ranks)),
        "recall_at_1": float(np.mean(ranks <= 1)),
        "recall_at_10": float(np.mean(ranks <= 10)),
        "chance_mrr": float(np.mean(harmonic[sizes - 1] / sizes)),
        "chance_recall_at_1": float(np.mean(1 / sizes)),
        "chance_recall_at_10": float(np.mean(np.minimum(10 / sizes, 1))),
        "candidates": candidates,
    }


def _block_ranks(scores: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The diagonal's rank in each row of `scores` [m, m], and the number of competing candidates including itself."""
    if np.isnan(scores).any():
        raise ValueError("the scores of a search are not all numbers: the embeddings hold NaN or infinity")
    own = np.diagonal(scores)[:, None]
    competes = groups[:, None] != groups[None, :]
    better = (competes & (scores > own)).sum(axis=1)
    equal = (competes & (scores == own)).sum(axis=1)
    return 1 + better + equal / 2, 1 + competes.sum(axis=1)


def top(scores: np.ndarray, depth: int) -> np.ndarray:
    """Columns of the `depth` highest scores in each row, best first, int64 [n, min(depth, m)]; scores: [n, m].

    Of equal scores the lower column comes first; this also decides which of them are in the list.
    """
    depth = min(depth, scores.shape[1])
    least = np.partition(scores, -depth, axis=1)[:, -depth]
    chosen = np.empty((len(scores), depth), np.int64)
    for row, (values, threshold) in enumerate(zip(scores, least, strict=True)):
        columns = np.flatnonzero(values >= threshold)
        chosen[row] = columns[np.argsort(-values[columns], kind="stable")[:depth]]
    return chosen


def ranking_metrics(ranked: np.ndarray, relevant: np.ndarray, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """trec_eval's metrics of each query, float64 [n].

    ranked: int [n, depth], relevances of each query's documents, best first; 0 for documents that are not relevant or
    not judged. relevant: int [n, most], all judged relevances above 0 of each query, in any order, padded with 0. A
    document is relevant if its relevance is at least 1.

    - ndcg_at_10: the sum of relevance / log2(1 + rank), divided by the sum of the best possible ranking;
    - mrr_at_10: 1 / rank of the first relevant document, 0 if it is not among the first ten;
    - map: the mean of the precisions at the ranks of all relevant documents, 0 for documents not in `ranked`;
    - recall_at_k for each k: the fraction of the relevant documents among the first k.

    All are 0 for a query without a relevant document.
    """
    ranked, relevant = np.maximum(ranked, 0), np.maximum(relevant, 0)
    hits, totals = ranked > 0, (relevant > 0).sum(axis=1)
    ranks = np.arange(1, ranked.shape[1] + 1)
    precision = np.cumsum(hits, axis=1) / ranks
    best = -np.sort(-relevant, axis=1)
    metrics = {
        f"ndcg_at_{NDCG_DEPTH}": _ratio(_gain(ranked[:, :NDCG_DEPTH]), _gain(best[:, :NDCG_DEPTH])),
        f"mrr_at_{MRR_DEPTH}": (hits / ranks)[:, :MRR_DEPTH].max(axis=1, initial=0.0),
        "map": _ratio((precision * hits).sum(axis=1), totals),
    }
    return metrics | {f"recall_at_{k}": _ratio(hits[:, :k].sum(axis=1), totals) for k in ks}


def _gain(relevances: np.ndarray) -> np.ndarray:
    return (relevances / np.log2(2 + np.arange(relevances.shape[1]))).sum(axis=1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
