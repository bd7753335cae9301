"""One picture of a multirun, which shows what its user varied.

One key: the objective over its values. Two keys: lines, or a heat map if there are many. A search, or more keys: the
objective by trial with the best so far, and over each key. Jobs that differ only in their seed are dots around a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.reports.figures import color as group_color
from gpt2x.reports.figures import new_figure, save_png, style
from gpt2x.reports.find import below
from gpt2x.reports.run import is_lower_better
from gpt2x.reports.trials import Trial, Trials, is_log, is_numeric, trials_of
from gpt2x.runtime.jobs import FINISHED, PRUNED

MANY_LINES = 6
MANY_PANELS = 6
NO_SEED = "job"
MAX_TICK_CHARS = 40  # of all labels of an axis together; numbers of a search are longer


def sweep_picture(sweep_dir: Path, png_path: Path) -> bool:
    """Draw a multirun from the `job.json` and `metrics.jsonl` of its jobs.

    Args:
        sweep_dir: the directory of the multirun.
        png_path: the picture; replaced completely or not at all.

    Returns:
        False if no job has a value yet; then nothing is written.

    Raises:
        UserError: there are no jobs.
        OSError: the picture cannot be written.
    """
    figure = sweep_figure(trials_of(below(sweep_dir)))
    if figure is None:
        return False
    save_png(figure, png_path)
    return True


def sweep_figure(
    trials: Trials,
    ink: str = "#222222",
    grid: str = "#dddddd",
    color: Callable[[int], str] = group_color,
) -> Any | None:
    """Return the picture as a figure of matplotlib; None if no job has a value."""
    if not trials.measured:
        return None
    picture = _Picture(trials, ink, grid, color)
    numeric = [key for key in trials.keys if is_numeric(trials.levels(key))]
    if not trials.keys:
        picture.over_seeds()
    elif len(trials.keys) == 1:
        picture.over_key(trials.keys[0])
    elif len(trials.keys) == 2 and trials.is_grid:
        first, second = sorted(trials.keys, key=lambda key: (key not in numeric, -len(trials.levels(key))))
        if first in numeric and len(trials.levels(second)) <= MANY_LINES:
            picture.lines(first, second)
        else:
            picture.heat_map(first, second)
    else:
        picture.search()
    return picture.figure


class _Picture:
    """The kinds of pictures."""

    def __init__(self, trials: Trials, ink: str, grid: str, color: Callable[[int], str]):
        self.trials, self.ink, self.grid, self.color = trials, ink, grid, color
        self.is_lower = is_lower_better(trials.metric)
        choose = min if self.is_lower else max
        self.best = choose(trials.counted, key=lambda trial: trial.value or 0.0)

    def over_seeds(self) -> None:
        axes = self.plots(1)[0]
        has_seeds = len({trial.seed for trial in self.trials.trials}) > 1
        values = [trial.seed if has_seeds else str(trial.number) for trial in self.trials.measured]
        self.points(axes, self.trials.measured, np.arange(len(values)), 0)
        axes.set_xticks(np.arange(len(values)), values)
        self.finish(axes, "seed" if has_seeds else NO_SEED)

    def over_key(self, key: str) -> None:
        axes = self.plots(1)[0]
        positions = self.positions(axes, key)
        self.series(axes, key, self.trials.measured, positions, 0, with_line=is_numeric(self.trials.levels(key)))
        self.finish(axes, self.trials.short(key))

    def lines(self, over: str, each: str) -> None:
        axes = self.plots(1)[0]
        positions = self.positions(axes, over)
        for number, level in enumerate(self.trials.levels(each)):
            chosen = [trial for trial in self.trials.measured if trial.values.get(each, "") == level]
            label = f"{self.trials.short(each)}={level}"
            self.series(axes, over, chosen, positions, number, label=label)
        legend = axes.legend(frameon=False, fontsize=9, labelcolor=self.ink)
        for entry in legend.get_texts():
            entry.set_parse_math(False)
        self.finish(axes, self.trials.short(over))

    def heat_map(self, over: str, each: str) -> None:
        columns, rows = self.trials.levels(over), self.trials.levels(each)
        cells: dict[tuple[int, int], list[float]] = {}
        for trial in self.trials.counted:
            place = rows.index(trial.values.get(each, "")), columns.index(trial.values.get(over, ""))
            cells.setdefault(place, []).append(float(trial.value or 0.0))
        means = np.full((len(rows), len(columns)), np.nan)
        for place, values in cells.items():
            means[place] = np.mean(values)
        axes = self.plots(1, (max(6.0, 1.1 * len(columns) + 2), max(3.4, 0.55 * len(rows) + 2)))[0]
        mesh = axes.pcolormesh(means, cmap="viridis_r" if self.is_lower else "viridis", edgecolors="face")
        norm, cmap = mesh.norm, mesh.cmap
        for (row, column), values in cells.items():
            red, green, blue, _ = cmap(norm(means[row, column]))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            spread = f"\n\u00b1 {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
            text = f"{means[row, column]:.4g}{spread}"
            tone = "#ffffff" if is_dark else "#111111"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color=tone)
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
        self.finish(axes, self.trials.short(over), self.trials.short(each))
        axes.grid(visible=False)

    def search(self) -> None:
        keys = self.trials.keys[:MANY_PANELS]
        axes, *others = self.plots(1 + len(keys))
        measured = self.trials.measured
        numbers = np.array([trial.number for trial in measured])
        self.points(axes, measured, numbers, 0)
        best = np.minimum.accumulate if self.is_lower else np.maximum.accumulate
        counted = self.trials.counted
        so_far = best(np.array([trial.value for trial in counted], dtype=float))
        x = [trial.number for trial in counted]
        axes.step(x, so_far, where="post", color=self.color(1), linewidth=1.6, label="best so far")
        axes.legend(frameon=False, fontsize=9, labelcolor=self.ink)
        self.limit(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)
        self.finish(axes, "trial")
        for panel, key in zip(others, keys, strict=True):
            self.series(panel, key, measured, self.positions(panel, key), 0, with_line=False, with_mean=False)
            self.limit(panel)
            self.finish(panel, self.trials.short(key), has_title=False)

    # ---- parts

    def plots(self, count: int, size: tuple[float, float] | None = None) -> list[Any]:
        """Begin the figure: one plot, or one over the whole width and rows of two below it."""
        if count == 1:
            self.figure = new_figure(size or (7.2, 4.2))
            return [self.figure.subplots()]
        rows = (count - 1 + 1) // 2
        self.figure = new_figure((9, 3.2 + 2.6 * rows))
        layout = self.figure.add_gridspec(1 + rows, 2)
        first = self.figure.add_subplot(layout[0, :])
        return [first, *[self.figure.add_subplot(layout[1 + i // 2, i % 2]) for i in range(count - 1)]]

    def positions(self, axes: Any, key: str) -> dict[str, float]:
        """Set up an x axis for a key; return where its values are."""
        levels = self.trials.levels(key)
        if not is_numeric(levels):
            axes.set_xticks(np.arange(len(levels)), levels, rotation=0 if len("".join(levels)) < 60 else 30)
            for label in axes.get_xticklabels():
                label.set_parse_math(False)
            axes.set_xlim(-0.5, len(levels) - 0.5)
            return {level: float(index) for index, level in enumerate(levels)}
        if is_log(levels, key):
            axes.set_xscale("log")
        if len(levels) <= 8 and len("".join(levels)) <= MAX_TICK_CHARS:
            from matplotlib.ticker import NullLocator

            axes.set_xticks([float(level) for level in levels], levels)
            axes.xaxis.set_minor_locator(NullLocator())
        return {level: float(level) for level in levels}

    def series(
        self, axes: Any, key: str, chosen: Sequence[Trial], positions: dict[str, float], number: int, *,
        label: str = "", with_line: bool = True, with_mean: bool = True,
    ) -> None:  # fmt: skip
        """Draw jobs over a key: a dot each, and the mean of those with one value."""
        self.points(axes, chosen, np.array([positions[trial.values.get(key, "")] for trial in chosen]), number)
        counted = [trial for trial in chosen if trial in self.trials.counted]
        if not with_mean or not counted:
            return
        x = np.array([positions[trial.values.get(key, "")] for trial in counted])
        y = np.array([trial.value for trial in counted], dtype=float)
        places = np.unique(x)
        means = [y[x == place].mean() for place in places]
        if with_line:
            axes.plot(places, means, color=self.color(number), linewidth=1.6, label=label or None)
        elif len(places) < len(x):
            axes.plot(places, means, "_", color=self.color(number), markersize=26, markeredgewidth=2)

    def points(self, axes: Any, chosen: Sequence[Trial], x: np.ndarray, number: int) -> None:
        """Draw a dot per job, a ring if it was pruned, a cross if it has not finished; the best one is marked."""
        for trial, place in zip(chosen, x, strict=True):
            tone = self.color(number)
            face = "none" if trial.status == PRUNED else tone
            mark = "o" if trial.status in (FINISHED, PRUNED) else "x"
            axes.plot(place, trial.value, mark, color=tone, markerfacecolor=face, markersize=5, alpha=0.85)
            if trial is self.best:
                axes.plot(place, trial.value, "o", color=self.ink, markerfacecolor="none", markersize=11)

    def limit(self, axes: Any) -> None:
        """Leave out of a search what is far worse than the median: diverged trials would flatten the others."""
        values = np.array([trial.value for trial in self.trials.measured], dtype=float)
        low, middle, high = values.min(), np.median(values), values.max()
        best, worst = (low, high) if self.is_lower else (high, low)
        if abs(worst - middle) > 4 * abs(middle - best) > 0:
            edge = middle + (3 if self.is_lower else -3) * abs(middle - best)
            margin = 0.15 * abs(middle - best)
            axes.set_ylim(*((low - margin, edge) if self.is_lower else (edge, high + margin)))

    def finish(self, axes: Any, x_label: str, y_label: str = "", *, has_title: bool = True) -> None:
        """Write what is shown."""
        trials = self.trials
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label or trials.metric, parse_math=False)
        if has_title:
            states = ", ".join(f"{count} {status}" for status, count in trials.states.items())
            what = " ".join(f"{trials.short(key)}={_short(self.best.values.get(key, ''))}" for key in trials.keys)
            if len({trial.seed for trial in trials.trials}) > 1:
                what = f"{what} seed={self.best.seed}".strip()
            lines = [f"{trials.metric}, {'lower' if self.is_lower else 'higher'} is better: {states}"]
            lines.append(f"best {self.best.value:.4f}: {what or f'job {self.best.number}'}")
            axes.set_title("\n".join(lines), loc="left", fontsize=10, parse_math=False)
        style(axes, self.ink, self.grid)
        axes.set_title(axes.get_title(loc="left"), loc="left", color=self.ink, fontsize=10, parse_math=False)


def _short(value: str) -> str:
    """Return a number with at most four digits, other values as they are."""
    return f"{float(value):.4g}" if is_numeric([value]) else value
