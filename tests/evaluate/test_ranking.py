"""Metrics of rankings against pytrec_eval, SciPy and plain loops."""

import math

import numpy as np
import pytest
from scipy import stats

from megagpt.data import bm25
from megagpt.evaluate.ranking import pearson, search_among_candidates, search_by_scores, spearman, top
from megagpt.evaluate.retrieval import RetrievalSet, measure
from megagpt.evaluate.settings import RetrievalEvaluation


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def random_set(rng: np.random.Generator, documents: int, queries: int, highest: int) -> RetrievalSet:
    """Judgements from -1 to `highest`, few or many, of documents some of which are not in the corpus."""
    ids = [f"d{number}" for number in rng.permutation(10 * documents)[: documents + 5]]
    judgements = {}
    for query in range(queries):
        judged = rng.choice(ids, size=min(rng.integers(1, 15), len(ids)), replace=False)
        judgements[f"q{query}"] = {str(one): int(rng.integers(-1, highest + 1)) for one in judged}
    judgements["q0"] = dict.fromkeys(judgements["q0"], 0)  # nothing is relevant
    inside = sorted(ids[:documents], reverse=True)
    return RetrievalSet(dict.fromkeys(inside, "text"), dict.fromkeys(judgements, "text"), judgements)


@pytest.mark.parametrize("levels", [2, 7, 10**6], ids=["mostly ties", "many ties", "few ties"])
@pytest.mark.parametrize(("documents", "highest"), [(7, 1), (300, 3), (2100, 1)])
def test_metrics_equal_pytrec_evals(rng, levels, documents, highest, tmp_path):
    trec = pytest.importorskip("pytrec_eval")
    data = random_set(rng, documents, 90, highest)
    scores = rng.integers(0, levels, size=(90, documents)).astype(np.float32) / np.float32(levels)
    settings = RetrievalEvaluation(
        task="retrieval", data=tmp_path, output=tmp_path, checkpoint=tmp_path, k=(1, 10, 100)
    )
    found = measure(data, lambda start: scores[start : start + 64], settings, "searching")

    # trec_eval's own sorting, of whole rankings; MAP and MRR have no depth there, so those rankings are cut before.
    names, cut = list(data.documents), {10: {}, 1000: {}}
    for query, row in zip(data.queries, scores, strict=True):
        order = sorted(range(documents), key=lambda number: (row[number], names[number]), reverse=True)
        for depth, runs in cut.items():
            runs[query] = {names[number]: float(row[number]) for number in order[:depth]}
    whole = {q: dict(zip(names, map(float, row), strict=True)) for q, row in zip(data.queries, scores, strict=True)}

    def mean(measures: set[str], run: dict, name: str) -> float:
        values = trec.RelevanceEvaluator(data.judgements, measures).evaluate(run)
        assert len(values) == 90
        return math.fsum(value[name] for value in values.values()) / 90

    expected = {
        "ndcg_at_10": mean({"ndcg_cut.10"}, whole, "ndcg_cut_10"),
        "mrr_at_10": mean({"recip_rank"}, cut[10], "recip_rank"),
        "map": mean({"map"}, cut[1000], "map"),
        **{f"recall_at_{k}": mean({f"recall.{k}"}, whole, f"recall_{k}") for k in (1, 10, 100)},
    }
    assert found == pytest.approx(expected, rel=0, abs=1e-9)


def test_the_best_come_first_and_of_equal_ones_the_earlier(rng):
    for levels, depth in ((1, 5), (3, 5), (3, 40), (1000, 12), (1000, 41)):
        scores = rng.integers(0, levels, size=(20, 40)).astype(np.float32)
        assert (top(scores, depth) == np.argsort(-scores, axis=1, kind="stable")[:, :depth]).all()


def test_a_documents_own_id_can_be_left_out(tmp_path):
    data = RetrievalSet({"b": "x", "a": "x"}, {"a": "x"}, {"a": {"b": 1}})
    scores = np.array([[0.1, 0.9]])  # the query is found first by itself
    needed = {"task": "retrieval", "data": tmp_path, "output": tmp_path, "checkpoint": tmp_path, "k": (1,)}
    for skip, mrr in ((False, 0.5), (True, 1.0)):
        found = measure(data, lambda _: scores, RetrievalEvaluation(**needed, skip_same_id=skip), "searching")
        assert found["mrr_at_10"] == mrr


def test_correlations_equal_scipys(rng):
    for levels in (3, 10**9):
        first, second = rng.integers(0, levels, size=(2, 500))
        first = first + second
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
        assert pearson(first, second) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)
    assert math.isnan(spearman(np.ones(5), np.arange(5)))
    assert math.isnan(spearman(np.array([1, math.nan, 2]), np.arange(3)))
    assert spearman(np.arange(5), np.arange(5) ** 3) == pytest.approx(1)


def test_the_search_counts_ranks_in_blocks(rng):
    queries, positives = (rng.normal(size=(25, 8)).astype(np.float32) for _ in range(2))
    found = search_among_candidates(queries, positives, candidates=10, seed=3)
    order, ranks = np.random.default_rng(3).permutation(25), []
    for queries_of, block in ((order[:10], order[:10]), (order[10:20], order[10:20]), (order[20:], order[15:])):
        for one in queries_of:
            scores = [float(queries[one] @ positives[other]) for other in block]
            ranks.append(1 + sum(score > float(queries[one] @ positives[one]) + 1e-6 for score in scores))
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert found["recall_at_1"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert (found["recall_at_10"], found["chance_recall_at_10"]) == (1, 1)
    assert found["candidates"] == 10
    assert search_among_candidates(queries, positives, candidates=100)["candidates"] == 25
    assert found != search_among_candidates(queries, positives, candidates=10, seed=4)
    assert found == search_among_candidates(queries, positives, candidates=10, seed=3)


def test_chance_is_what_random_scores_get(rng):
    found = search_by_scores(lambda block: rng.random((len(block), len(block))), 20_000, 100, 0)
    harmonic = sum(1 / rank for rank in range(1, 101)) / 100
    assert found["chance_mrr"] == pytest.approx(harmonic)
    assert found["mrr"] == pytest.approx(harmonic, rel=0.05)
    assert (found["chance_recall_at_1"], found["chance_recall_at_10"]) == pytest.approx((0.01, 0.1))
    assert search_by_scores(lambda block: np.eye(len(block)), 1000, 1000, 0)["chance_mrr"] == pytest.approx(
        0.0075, abs=2e-5
    )


def test_equal_scores_have_their_mean_rank_and_equal_texts_do_not_compete():
    same = np.ones((9, 4), np.float32) / 2
    assert search_among_candidates(same, same, 9)["mrr"] == pytest.approx(1 / 5)
    found = search_among_candidates(same, same, 9, groups=[0] * 9)
    assert found["mrr"] == found["chance_mrr"] == 1  # no other text is there
    found = search_among_candidates(same, same, 9, groups=[0, 0, 0, 0, 0, 0, 1, 1, 1])
    assert found["mrr"] == pytest.approx((6 / 2.5 + 3 / 4) / 9)


def test_a_search_refuses_what_is_no_number():
    good, bad = np.eye(3, dtype=np.float32), np.full((3, 3), np.nan, np.float32)
    with pytest.raises(ValueError, match="NaN"):
        search_among_candidates(good, bad)
    with pytest.raises(ValueError, match="do not match"):
        search_among_candidates(good, good[:2])
    with pytest.raises(ValueError, match="needs pairs"):
        search_among_candidates(good[:0], good[:0])


def test_bm25_equals_its_formula(rng):
    vocabulary = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    documents = [" ".join(rng.choice(vocabulary, size=rng.integers(1, 30))) for _ in range(40)]
    queries = [*(" ".join(rng.choice(vocabulary, size=4)) for _ in range(6)), "unknown words", ""]
    mean = np.mean([len(text.split()) for text in documents])
    scores = bm25.BM25(documents).scores(queries)
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            expected = 0.0
            for word in query.split():
                holders = sum(word in text.split() for text in documents)
                count = document.split().count(word)
                norm = 0.9 * (1 - 0.4 + 0.4 * len(document.split()) / mean)
                expected += math.log(1 + (40 - holders + 0.5) / (holders + 0.5)) * count / (count + norm)
            assert scores[row, column] == pytest.approx(expected, abs=1e-12)
    assert (bm25.BM25(documents).scores(queries, np.array([7, 3])) == scores[:, [7, 3]]).all()
    assert (bm25.BM25(["...", "!"]).scores(["a", "b", "c"]) == np.zeros((3, 2))).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def readHTTPLine(self, max_size=10):", ["def", "read", "http", "line", "self", "max", "size", "10"]),
        ("It's a Test: IL-6, β2.", ["it", "s", "a", "test", "il", "6", "β", "2"]),
        ("Tür ÉCOLE 中文abc", ["tür", "école", "中", "文", "abc"]),
        ("...", []),
    ],
)
def test_words_of_texts_and_programs(text, words):
    assert bm25.words(text) == words
