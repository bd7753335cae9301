"""The bootstrap's 95 % interval: how much a metric varies with the choice of windows or texts (imports no mindspore).

Efron (1979): draw as many windows or texts as there are, with replacement, and compute the metric; repeat many times.
The interval contains the middle 95 % of the values. A perplexity's interval is that of its loss, exponentiated.
Legend: n windows or texts of an evaluation, or (..., n) of the draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import stats

from gpt2x.errors import UserError
from gpt2x.evaluate.metrics import METRICS, confusion_matrix

VALUES_AT_ONCE = 2**21  # limits the memory of the draws
MEANINGFUL = 2  # fewest windows or texts of which an interval is computed


@dataclass(frozen=True)
class WindowScores:
    """The windows of a perplexity, whose loss is the sum of `nll` divided by the sum of `weight`."""

    METRICS: ClassVar = ("loss", "ppl")
    nll: np.ndarray  # (..., n) in nats, times the weight that the protocol gives a token of the window
    weight: np.ndarray  # (..., n)

    def metrics(self) -> np.ndarray:
        """Return the values of METRICS, (2, ...)."""
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss = self.nll.sum(axis=-1) / self.weight.sum(axis=-1)
            return np.stack([loss, np.exp(loss)])

    def is_alongside(self, other: WindowScores) -> bool:
        """Return True if both have the same weights, so that the same windows can be drawn from both."""
        return np.array_equal(self.weight, other.weight)


@dataclass(frozen=True)
class TextScores:
    """The texts that a classifier has scored."""

    METRICS: ClassVar = ("loss", *METRICS)
    loss: np.ndarray  # (..., n) in nats
    label: np.ndarray  # (..., n) integers
    predicted: np.ndarray  # (..., n) integers

    def metrics(self) -> np.ndarray:
        """Return the values of METRICS, (4, ...)."""
        num_labels = int(max(self.label.max(), self.predicted.max())) + 1
        rows = self.label.reshape(-1, self.label.shape[-1]), self.predicted.reshape(-1, self.label.shape[-1])
        confusions = [confusion_matrix(*row, num_labels) for row in zip(*rows, strict=True)]
        by_metric = [[metric(confusion) for confusion in confusions] for metric in METRICS.values()]
        shape = self.loss.shape[:-1]
        return np.stack([self.loss.mean(axis=-1), *(np.reshape(values, shape) for values in by_metric)])

    def is_alongside(self, other: TextScores) -> bool:
        """Return True if both have the same texts."""
        return np.array_equal(self.label, other.label)


Scores = WindowScores | TextScores
Interval = tuple[float, float]
Intervals = Mapping[str, Interval]  # by metric
ENDS = ("low", "high")


def flat(metrics: Mapping[str, Any], limits: Intervals) -> dict[str, Any]:
    """Return `metrics`, with METRIC_low and METRIC_high for each METRIC that has an interval."""
    ends = {f"{metric}_{end}": value for metric in limits for end, value in zip(ENDS, limits[metric], strict=True)}
    return {**metrics, **ends}


def intervals(scores: Scores, resamples: int, seed: int) -> dict[str, Interval]:
    """Return the interval of each metric; none for a single window, or if a metric is not finite."""
    kind = type(scores)
    return _intervals(kind.METRICS, lambda columns: kind(*columns).metrics(), _columns(scores), resamples, seed)


def differences(scores: Scores, first: Scores, resamples: int, seed: int) -> dict[str, tuple[float, Interval]]:
    """Return each metric minus that of `first`, and its interval when the same windows are drawn from both.

    The result is empty if the two do not have the same windows or texts.
    """
    if type(scores) is not type(first) or not scores.is_alongside(first):  # type: ignore[arg-type]
        return {}
    kind = type(scores)

    def difference(columns: list[np.ndarray]) -> np.ndarray:
        middle = len(columns) // 2
        with np.errstate(invalid="ignore"):
            return kind(*columns[:middle]).metrics() - kind(*columns[middle:]).metrics()

    columns = [*_columns(scores), *_columns(first)]
    values = dict(zip(kind.METRICS, difference(columns).tolist(), strict=True))
    limits = _intervals(kind.METRICS, difference, columns, resamples, seed)
    return {metric: (values[metric], interval) for metric, interval in limits.items()}


def _intervals(
    metrics: tuple[str, ...], statistic: Callable[[list[np.ndarray]], np.ndarray], columns: list[np.ndarray],
    resamples: int, seed: int,
) -> dict[str, Interval]:  # fmt: skip
    """Return the interval of each of `metrics`, whose values `statistic` returns as (len(metrics), ...)."""
    number = len(columns[0])
    if number < MEANINGFUL or not all(np.isfinite(column).all() for column in columns):
        return {}
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # infinite perplexities are left out below
        interval = stats.bootstrap(
            columns, lambda *drawn, axis: statistic(list(drawn)), paired=True, vectorized=True, method="percentile",
            n_resamples=resamples, batch=max(1, VALUES_AT_ONCE // number), rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
    pairs = zip(metrics, interval.low.tolist(), interval.high.tolist(), strict=True)
    return {metric: (low, high) for metric, low, high in pairs if np.isfinite([low, high]).all()}


def _columns(scores: Scores) -> list[np.ndarray]:
    return [getattr(scores, field.name) for field in fields(scores)]


def save_scores(target: Path, scores: Mapping[str, Scores]) -> None:
    """Write `scores.npz`, with the columns of each entry as `NAME/COLUMN`."""
    arrays = {
        f"{name}/{field.name}": getattr(entry, field.name) for name, entry in scores.items() for field in fields(entry)
    }
    np.savez_compressed(target, **arrays)


def load_scores(path: Path) -> dict[str, Scores]:
    """Read what `save_scores` wrote.

    Raises:
        UserError: the file is damaged.
    """
    columns: dict[str, dict[str, np.ndarray]] = {}
    try:
        with np.load(path) as file:
            for key in file.files:
                name, _, column = key.rpartition("/")
                columns.setdefault(name, {})[column] = file[key]
        return {name: WindowScores(**arrays) if "nll" in arrays else TextScores(**arrays)
                for name, arrays in columns.items()}  # fmt: skip
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again.") from error
