"""pass@k: the probability that at least one of k samples passes a problem's tests (Chen et al., arXiv 2107.03374)."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megagpt.errors import ConfigError

NORMAL_95 = statistics.NormalDist().inv_cdf(0.975)
"""Half the width of a 95% confidence interval, in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """pass@k over a set of problems."""

    value: float
    """Mean over the problems."""
    standard_error: float
    """Standard error of `value`, with the problems as a random sample; NaN for a single problem."""

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval by the normal approximation, clipped to [0, 1]."""
        reach = NORMAL_95 * self.standard_error
        return max(0.0, self.value - reach), min(1.0, self.value + reach)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of pass@k for one problem with c passing samples of n: 1 - C(n - c, k) / C(n, k).

    Raises ConfigError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ConfigError(f"pass@{k} cannot be estimated from {n} samples of which {c} pass: take at least k samples")
    if n - c < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))  # the binomials would overflow


def estimate(counts: Sequence[tuple[int, int]], k: int) -> Estimate:
    """pass@k over problems; counts: (n samples, c passing) of each. Raises ConfigError as `pass_at_k`, or for none."""
    if not counts:
        raise ConfigError(f"there is no problem to estimate pass@{k} from")
    values = [pass_at_k(n, c, k) for n, c in counts]
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)
