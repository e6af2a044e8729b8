"""Intervals and tests beside scipy's, and their coverage computed from the binomial distribution."""

import numpy as np
import pytest

from megagpt.evaluate.in_context import intervals
from megagpt.evaluate.in_context.intervals import (
    bootstrap,
    bootstrap_interval,
    bootstrap_p_value,
    exp_minus_mean_of,
    interval_of_share,
    mcnemar_p_value,
    mean_of,
    percentile_interval,
)

stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (13, 40), (999, 1000), (2500, 10_000)])
def test_interval_of_a_share_is_clopper_and_pearsons(right, n):
    expected = stats.binomtest(right, n).proportion_ci(0.95, "exact")
    found = interval_of_share(right, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.93])
def test_interval_of_a_share_holds_it_often_enough(p):
    n = 40
    found = [interval_of_share(right, n) for right in range(n + 1)]
    holds = [one.low <= p <= one.high for one in found]
    assert stats.binom.pmf(np.arange(n + 1), n, p)[holds].sum() >= 0.95


def test_bootstrap_of_a_mean_is_scipys():
    values = np.random.default_rng(1).gamma(0.7, size=200)
    found = bootstrap_interval(mean_of(values), 200, resamples=20_000)
    peer = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2))
    width = peer.confidence_interval.high - peer.confidence_interval.low
    assert found.low == pytest.approx(peer.confidence_interval.low, abs=0.03 * width)
    assert found.high == pytest.approx(peer.confidence_interval.high, abs=0.03 * width)


def test_bootstrap_of_a_perplexity_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(-3, 1, size=50)
    mean = bootstrap_interval(mean_of(values), 50)
    perplexity = bootstrap_interval(exp_minus_mean_of(values), 50)
    assert (perplexity.low, perplexity.high) == pytest.approx((np.exp(-mean.high), np.exp(-mean.low)), rel=1e-3)


def test_bootstrap_of_right_and_wrong_has_the_binomial_distribution():
    values = np.array([1.0] * 30 + [0.0] * 70)
    right = (100 * bootstrap(mean_of(values), 100, resamples=20_000)).round().astype(int)
    shares = np.bincount(right, minlength=101) / 20_000
    assert shares == pytest.approx(stats.binom.pmf(np.arange(101), 100, 0.3), abs=0.012)


def test_bootstrap_covers_the_mean():
    random, held = np.random.default_rng(3), 0
    for seed in range(400):
        found = bootstrap_interval(mean_of(random.random(60)), 60, seed=seed, resamples=400)
        held += found.low <= 0.5 <= found.high
    assert stats.binom.cdf(held, 400, 0.95) > 1e-4 and stats.binom.sf(held - 1, 400, 0.95) > 1e-4


def test_bootstrap_depends_on_the_seed_alone():
    values = np.random.default_rng(1).random(30)
    first = bootstrap(mean_of(values), 30, seed=5, resamples=100)
    assert (first == bootstrap(mean_of(values), 30, seed=5, resamples=100)).all()
    assert not (first == bootstrap(mean_of(values), 30, seed=6, resamples=100)).all()


def test_bootstrap_draws_a_bounded_part_at_a_time(monkeypatch):
    monkeypatch.setattr(intervals, "CELLS", 700)
    shapes = []

    def figure(samples):
        shapes.append(samples.shape)
        return samples.mean(axis=1)

    assert bootstrap(figure, 300, resamples=5).shape == (5,)
    assert shapes == [(2, 300), (2, 300), (1, 300)]
    bootstrap(figure, 1000, resamples=2)
    assert shapes[3:] == [(1, 1000), (1, 1000)]


def test_there_is_no_interval_of_one_example_or_of_infinities():
    assert bootstrap_interval(mean_of(np.array([0.3])), 1) is None
    assert percentile_interval(np.array([1.0, np.inf, 2.0])) is None
    assert percentile_interval(np.array([1.0, np.nan])) is None


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 3), (1, 9), (40, 70), (2000, 2200), (0, 30)])
def test_mcnemar_is_the_binomial_test(first, second):
    assert mcnemar_p_value(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)
    assert mcnemar_p_value(second, first) == mcnemar_p_value(first, second)


def test_mcnemar_without_a_difference():
    assert mcnemar_p_value(0, 0) == 1.0


def test_p_value_of_a_bootstrap_agrees_with_a_t_test():
    differences = np.random.default_rng(4).normal(0.25, 1, size=80)
    p_value = bootstrap_p_value(bootstrap(mean_of(differences), 80, resamples=20_000))
    assert p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=0.3)
    assert 0 < bootstrap_p_value(np.ones(99)) == pytest.approx(2 / 100)
    assert bootstrap_p_value(np.zeros(10)) == 1.0
