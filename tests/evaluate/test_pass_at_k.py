"""The estimator of pass@k against the combinatorial definition, counted out in whole numbers."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megagpt.errors import ConfigError
from megagpt.evaluate.pass_at_k import estimate, pass_at_k


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_equals_closed_form(numbers):
    n, c, k = numbers
    expected = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(expected), rel=1e-9, abs=1e-12)


def test_is_the_share_of_subsets_with_a_passing_sample():
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_refuses_what_cannot_be_estimated(n, c, k):
    with pytest.raises(ConfigError, match="cannot be estimated"):
        pass_at_k(n, c, k)


def test_error_and_interval_over_problems():
    found = estimate([(10, 0), (10, 5), (10, 10)], 1)
    assert found.value == pytest.approx(0.5)
    assert found.standard_error == pytest.approx(0.5 / math.sqrt(3))
    assert found.interval == (0.0, 1.0)  # cut to what a share can be
    narrow = estimate([(10, 5), (10, 6)] * 50, 1)
    assert narrow.interval == pytest.approx(
        (0.55 - 1.96 * narrow.standard_error, 0.55 + 1.96 * narrow.standard_error), abs=1e-5
    )
    assert math.isnan(estimate([(10, 5)], 1).standard_error)
    with pytest.raises(ConfigError, match="no problem"):
        estimate([], 1)
