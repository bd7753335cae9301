"""Intervals over seeds, against numbers made by hand and by scipy."""

import math

import pytest
from scipy import stats

from gpt2x.reports.statistics import difference, estimate


def test_a_mean_has_students_interval():
    # s = 1.290994, t(0.975, 3) = 3.182446, half width = 3.182446 * 1.290994 / 2
    mean = estimate([1.0, 2.0, 3.0, 4.0, math.nan])
    assert (mean.n, mean.mean) == (4, 2.5)
    assert mean.spread == pytest.approx(1.2909944)
    assert mean.interval == pytest.approx((0.4457398, 4.5542602))
    by_scipy = stats.ttest_1samp([1.0, 2.0, 3.0, 4.0], 0).confidence_interval(0.95)
    assert mean.interval == pytest.approx(tuple(by_scipy))


def test_a_difference_has_welchs_interval():
    # variances 5/3 and 4: squared error 5/12 + 4/3 = 1.75, df = 1.75^2 / ((5/12)^2 / 3 + (4/3)^2 / 2) = 3.234720
    change = difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0, 4.0])
    half = stats.t.ppf(0.975, 3.0625 / ((5 / 12) ** 2 / 3 + (4 / 3) ** 2 / 2)) * math.sqrt(1.75)
    assert change.value == 1.5
    assert change.interval == pytest.approx((1.5 - half, 1.5 + half))


def test_one_value_has_no_interval_and_equal_values_an_empty_one():
    assert estimate([math.inf]) is None
    assert estimate([3.0]).interval is None
    assert estimate([3.0, 3.0]).interval == (3.0, 3.0)
    assert difference([3.0], [1.0, 2.0]).interval is None
    assert difference([3.0, 3.0], [1.0, 1.0]).interval == (2.0, 2.0)
    assert difference([3.0, 3.0], [1.0, 2.0]).interval[0] < 1.5 < difference([3.0, 3.0], [1.0, 2.0]).interval[1]
    assert difference([], [1.0]) is None
