"""Rules of what is kept, beside NumPy's draws and plain loops."""

import json
import multiprocessing

import numpy as np
import pytest

from megagpt.data.corpus.text.quality.keep import draw, keep_pareto, pareto_probability, read_scores, top_threshold
from megagpt.errors import DataError

DRAWS = 200_000


@pytest.mark.parametrize("score", [0.0, 0.25, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("alpha", [9.0, 3.0])
def test_the_pareto_rule_keeps_what_gpt3s_line_keeps(score, alpha):
    theirs = (np.random.default_rng(0).pareto(alpha, DRAWS) > 1 - score).mean()
    ours = np.mean([keep_pareto(score, f"document {number}", alpha) for number in range(DRAWS)])
    formula = (2 - score) ** -alpha
    assert pareto_probability(score, alpha) == pytest.approx(formula, rel=1e-12)
    error = 5 * (formula * (1 - formula) / DRAWS) ** 0.5
    assert abs(theirs - formula) <= error
    assert abs(ours - formula) <= error
    if score == 1:
        assert ours == 1


def test_published_probabilities():
    """Of alpha 9: all at 1, 42% at 0.9, 13% at 0.75, 2.6% at 0.5, 0.2% at 0."""
    chances = [pareto_probability(score) for score in (1, 0.9, 0.75, 0.5, 0)]
    assert chances == pytest.approx([1, 0.424, 0.134, 0.026, 0.002], abs=5e-4)


def test_draws_are_even_and_independent():
    keys = [f"text {number}" for number in range(20_000)]
    one = np.array([draw(key, "pareto") for key in keys])
    others = [
        np.array([draw(key, purpose, seed) for key in keys]) for purpose, seed in (("pareto", 1), ("held out", 0))
    ]
    assert one.min() > 0
    assert one.max() < 1
    assert np.abs(np.sort(one) - (np.arange(len(one)) + 0.5) / len(one)).max() < 1.95 / len(one) ** 0.5  # Kolmogorov
    for other in others:
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


def decisions(start: int) -> list[bool]:
    return [keep_pareto(0.7, f"document {number}\n\ud800 ü", 9.0, 3) for number in range(start, start + 500)]


def test_every_process_decides_the_same():
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(decisions, [500, 0])
    assert parts == [decisions(500), decisions(0)]
    assert 0 < sum(parts[0]) < 500
    assert decisions(0) != [keep_pareto(0.7, f"document {number}\n\ud800 ü", 9.0, 4) for number in range(500)]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.333, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3, 10, 997])
def test_the_top_share_is_that_of_sorting(share, count):
    scores = np.random.default_rng(count).random(count)
    threshold = top_threshold(np.append(scores, np.nan), share)
    wanted = max(1, round(share * count))
    assert sorted(scores[scores >= threshold]) == sorted(scores)[-wanted:]


def test_ties_are_all_in():
    assert top_threshold(np.array([0.1, 0.5, 0.5, 0.5, 0.9]), 0.4) == 0.5


def test_what_has_no_top_share():
    with pytest.raises(DataError, match="no scores"):
        top_threshold(np.array([np.nan]), 0.1)
    for share in (0, -1, 1.1, float("nan")):
        with pytest.raises(DataError, match="top share is"):
            top_threshold(np.ones(3), share)


def test_scores_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([0.5, np.nan]))
    (tmp_path / "a.jsonl").write_text('{"record": 0, "score": 0.5}\n{"record": 1, "score": null, "reason": "empty"}\n')
    for name in ("a.npy", "a.jsonl"):
        np.testing.assert_array_equal(read_scores(tmp_path / name), [0.5, np.nan])
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    (tmp_path / "b.jsonl").write_text(json.dumps({"score": "x"}))
    (tmp_path / "c.jsonl").write_text("{}\n")
    for name in ("objects.npy", "b.jsonl", "c.jsonl", "absent.npy"):
        with pytest.raises(DataError, match="holds no scores"):
            read_scores(tmp_path / name)
