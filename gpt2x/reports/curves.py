"""Curves of a run against what it has spent: steps, tokens, seconds, FLOPs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpt2x.reports.run import TRAIN, Run

POINTS = 300  # per curve, at most; more are not seen and make files large
SMOOTHED = {"train/loss", "train/grad_norm"}


@dataclass(frozen=True)
class Axis:
    """What curves can be drawn against; `definition` says exactly what is counted."""

    name: str
    label: str
    definition: str

    @property
    def button(self) -> str:
        """The name for people."""
        return "FLOPs" if self.name == "flops" else self.name


AXES = (
    Axis("steps", "steps (updates)", "optimizer updates; skipped ones count"),
    Axis("tokens", "tokens", "train/tokens: targets seen, without padding (texts of a classifier)"),
    Axis(
        "seconds",
        "seconds of training",
        "time from line to line of metrics.jsonl, with evaluation, sampling and saving, without start-up, compilation "
        "and the pauses between the attempts of a resumed run",
    ),
    Axis(
        "flops",
        "model FLOPs",
        "F x tokens of the batches, as MFU counts them: without padding; F is the model's FLOPs per token of forward "
        "and backward (docs/training.md, MFU), and recomputation does not count",
    ),
)


def axis_values(run: Run, axis: str) -> np.ndarray | None:
    """Return the position of each row of a run on an axis, shape (rows,); None if it is not known."""
    if not run.rows or run.kind != TRAIN:
        return None
    if axis == "steps":
        return np.array([row["step"] for row in run.rows], dtype=float)
    if axis == "tokens":
        return _column(run, "train/tokens", "train/texts")
    if axis == "seconds":
        return seconds(run)
    per_token = run.flops_per_token
    return None if per_token is None else per_token * tokens_of_batches(run)


def seconds(run: Run) -> np.ndarray:
    """Return the seconds of training up to each row, shape (rows,), as `AXES` defines them.

    The first row of an attempt has `perf/compile_time_s`; only its step counts.
    """
    total, before, result = 0.0, None, []
    for row in run.rows:
        if before is None or "perf/compile_time_s" in row:
            passed = row.get("perf/step_time_s", row.get("perf/profiled_step_time_s", 0.0))
        else:
            passed = max(0.0, row["time"] - before)
        total += passed if np.isfinite(passed) else 0.0
        before = row["time"]
        result.append(total)
    return np.array(result)


def tokens_of_batches(run: Run) -> np.ndarray:
    """Return the tokens of all batches up to each row, shape (rows,), from the speed and the time of each step.

    A step without a speed, such as a profiled one, counts as a batch of full rows.
    """
    per_step = float((run.config.get("trainer.global_batch_size") or 0) * (run.config.get("trainer.seq_len") or 0))
    steps = np.array([row["step"] for row in run.rows], dtype=float)
    updates = np.diff(steps, prepend=0.0)
    speeds = [row.get("perf/tokens_per_s", np.nan) * row.get("perf/step_time_s", np.nan) for row in run.rows]
    return np.cumsum(updates * np.where(np.isfinite(speeds), speeds, per_step))


def smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the `width` values around each value, fewer at the ends; NaN does not count."""
    if width <= 1 or not len(values):
        return values
    is_finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(is_finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(is_finite)])
    low = np.clip(np.arange(len(values)) - width // 2, 0, None)
    high = np.clip(np.arange(len(values)) + width // 2 + 1, None, len(values))
    number = counts[high] - counts[low]
    return np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)


def smoothing_width(runs: list[Run]) -> int:
    """Return the steps over which training losses are averaged in all runs: a fortieth of the longest run, odd."""
    return max((len(run.rows) for run in runs if run.kind == TRAIN), default=0) // 40 | 1


def curve(run: Run, metric: str, axis: str, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return positions and values of a metric, each of shape (points,) with at most `POINTS`; None if there are none.

    Args:
        run: the run.
        metric: its name; those in `SMOOTHED` are averaged.
        axis: the name of one of `AXES`.
        width: steps that are averaged.
    """
    indices, values = run.series(metric)
    positions = axis_values(run, axis)
    if positions is None or not len(indices) or not np.isfinite(values).any():
        return None
    x, y = positions[indices], smooth(values, width) if metric in SMOOTHED else values
    if len(x) > POINTS:
        chosen = np.unique(np.linspace(0, len(x) - 1, POINTS).round().astype(int))
        x, y = x[chosen], y[chosen]
    return x, y


def final_train_loss(run: Run, width: int) -> float | None:
    """Return the mean of the last `width` finite training losses; None if there are none."""
    _, values = run.series("train/loss")
    values = values[np.isfinite(values)][-max(width, 1) :]
    return float(values.mean()) if len(values) else None


def _column(run: Run, *names: str) -> np.ndarray | None:
    """Return a cumulative metric per row; rows that lack it keep the value before."""
    name = next((name for name in names if name in run.metrics), None)
    if name is None:
        return None
    values, newest = [], 0.0
    for row in run.rows:
        newest = row.get(name, newest)
        values.append(newest)
    return np.array(values, dtype=float)
