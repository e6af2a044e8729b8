"""95% confidence intervals and significance tests, exact where a closed form exists, else by the bootstrap.

Examples are treated as a random sample from a larger population.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 5_000
"""Default number of bootstrap resamples."""

TAIL = 0.025
"""Probability on each side of an interval."""

CELLS = 1 << 22
"""Number of indices that are drawn at a time; bounds the bootstrap's memory."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps samples, int [samples, examples] (each row has indices of examples), to one figure per sample, [samples]."""


@dataclass(frozen=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float
    method: str
    """`exact binomial` or `bootstrap`."""


def mean_of(values: np.ndarray) -> Statistic:
    """Statistic: the mean of the sampled `values` [examples]."""
    return lambda samples: values[samples].mean(axis=1)


def exp_minus_mean_of(values: np.ndarray) -> Statistic:
    """Statistic: exp(-mean) of the sampled `values` [examples]; for log-probabilities it is the perplexity."""

    def figure(samples: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(-values[samples].mean(axis=1))

    return figure


def is_binary(values: np.ndarray) -> bool:
    """Whether every example is right (1) or wrong (0)."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def interval_of_share(successes: int, n: int) -> Interval:
    """Clopper-Pearson interval of a probability; it covers any probability in at least 95% of cases."""
    low = 0.0 if successes == 0 else _solve(_tail(successes, n), TAIL)
    high = 1.0 if successes == n else _solve(_tail(successes + 1, n), 1 - TAIL)
    return Interval(low, high, "exact binomial")


def bootstrap(statistic: Statistic, n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Figures [resamples] of samples of `n` examples, drawn with replacement from the n examples.

    About CELLS indices are drawn at a time, to bound memory.
    """
    random = np.random.default_rng(seed)
    at_once = max(1, CELLS // n)
    counts = [min(at_once, resamples - done) for done in range(0, resamples, at_once)]
    parts = [statistic(random.integers(0, n, (count, n), dtype=np.int32)) for count in counts]
    return np.concatenate(parts)


def percentile_interval(figures: np.ndarray) -> Interval | None:
    """The middle 95% of bootstrapped figures; None if some are not finite."""
    if not np.isfinite(figures).all():
        return None
    low, high = np.quantile(figures, [TAIL, 1 - TAIL])
    return Interval(float(low), float(high), "bootstrap")


def bootstrap_interval(statistic: Statistic, n: int, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval | None:
    """The percentile interval of a figure over `n` examples; None for a single example, which has no variance."""
    return percentile_interval(bootstrap(statistic, n, seed=seed, resamples=resamples)) if n > 1 else None


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value of bootstrapped differences: twice the share on the smaller side of 0 (inverted intervals).

    The sample itself counts as one more resample, so that the p-value is never 0.
    """
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, 2 * (int(smaller) + 1) / (len(differences) + 1))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided p-value of McNemar's exact test: by chance, each side wins half of the pairs with one right answer."""
    n = only_first + only_second
    return min(1.0, 2 * _tail(max(only_first, only_second), n)(0.5)) if n else 1.0


def _tail(k: int, n: int) -> Callable[[float], float]:
    """P(X >= k) for X ~ Binomial(n, p), as a function of p."""
    if k <= 0:
        return lambda p: 1.0
    successes = np.arange(k, n + 1)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_ways = log_factorials[n] - log_factorials[successes] - log_factorials[n - successes]

    def tail(p: float) -> float:
        if p <= 0 or p >= 1:
            return float(p >= 1)
        logs = log_ways + successes * math.log(p) + (n - successes) * math.log1p(-p)
        return min(1.0, float(np.exp(logs).sum()))

    return tail


def _solve(probability: Callable[[float], float], wanted: float) -> float:
    """The p in [0, 1] at which an increasing function equals `wanted`, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < wanted else (low, middle)
    return (low + high) / 2
