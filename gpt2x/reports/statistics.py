"""Means over seeds with 95 % intervals, and differences of means.

One group: Student's t, mean +- t(0.975, n - 1) * s / sqrt(n). Two groups: Welch's t with the degrees of freedom of
Welch and Satterthwaite. Both take the values of seeds as independent draws of a normal distribution.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        n: number of values.
        mean: their mean.
        spread: their standard deviation (n - 1); None below two values.
        interval: the 95 % interval of the mean; None below two values.
    """

    n: int
    mean: float
    spread: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True)
class Difference:
    """A difference of two means; `interval` is its 95 % interval, None if a group has fewer than two values."""

    value: float
    interval: Interval | None = None


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of finite values with its interval; None if there are none."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(len(values), mean)
    from scipy import stats

    spread = float(np.std(values, ddof=1))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * spread / math.sqrt(len(values))
    return Estimate(len(values), mean, spread, (mean - half, mean + half))


def difference(values: Sequence[float], baseline: Sequence[float]) -> Difference | None:
    """Return mean(values) - mean(baseline) with Welch's interval; None if one has no finite value."""
    values = [value for value in values if math.isfinite(value)]
    baseline = [value for value in baseline if math.isfinite(value)]
    if not values or not baseline:
        return None
    change = float(np.mean(values) - np.mean(baseline))
    if len(values) < 2 or len(baseline) < 2:
        return Difference(change)
    if not (np.var(values) or np.var(baseline)):  # no spread: scipy has no degrees of freedom
        return Difference(change, (change, change))
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal values within a group
        interval = stats.ttest_ind(values, baseline, equal_var=False).confidence_interval(LEVEL)
    return Difference(change, (float(interval.low), float(interval.high)))
