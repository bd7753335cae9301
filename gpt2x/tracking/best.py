"""The best value of a metric, and its step, from the lines of `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple


class Best(NamedTuple):
    """The best value of a metric, and the step that had it."""

    value: float
    step: int


def best_value(rows: Iterable[Mapping[str, Any]], metric: str, direction: Literal["lower", "higher"]) -> Best | None:
    """Return the best finite value of `metric` and its step, or None if no row has one; of equal values the first.

    Args:
        rows: what `gpt2x.tracking.jsonl.read` returns, in any order; rows without the metric are passed over.
        metric: a key such as `val/loss`.
        direction: which value is better: `lower` or `higher`.
    """
    sign = 1.0 if direction == "lower" else -1.0
    values = (Best(float(row[metric]), int(row["step"])) for row in rows if row.get(metric) is not None)
    finite = (best for best in values if math.isfinite(best.value))
    return min(finite, key=lambda best: (sign * best.value, best.step), default=None)
