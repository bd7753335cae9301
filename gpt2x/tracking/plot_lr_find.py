"""The picture of a sweep of the learning rate."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt2x.runtime.files import replaced

COLORS = ("#d62728", "#2ca02c")


def plot_lr_find(
    path: Path,
    title: str,
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    marks: Mapping[str, float],
    unit: str,
) -> None:
    """Draw losses over the learning rate.

    Args:
        path: the picture; replaced atomically.
        title: above it.
        rates: of the updates, on a logarithmic axis.
        losses: before the updates, in nats per unit; values that are not finite are gaps.
        smoothed: their mean.
        marks: rates to mark, by name.
        unit: what the loss is a mean over.

    Raises:
        OSError: the file cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces that it builds a font cache
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.plot(rates, gaps(losses), color="#1f77b4", alpha=0.3, linewidth=0.9, label="each update")
    axes.plot(rates, gaps(smoothed), color="#1f77b4", linewidth=1.8, label="smoothed")
    for (name, rate), color in zip(marks.items(), COLORS, strict=False):
        axes.axvline(rate, color=color, linestyle="--", linewidth=1.2, label=f"{name}, {rate:.1e}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate")
    axes.set_ylabel(f"training loss (nats per {unit})")
    low, high = visible(smoothed)
    axes.set_ylim(low, high)
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="upper left", fontsize=9, framealpha=0.9)
    with replaced(path) as part:
        figure.savefig(part, format="png")


def gaps(values: Sequence[float]) -> list[float]:
    """Return values with NaN for those that are not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]


def visible(smoothed: Sequence[float]) -> tuple[float, float]:
    """Return limits that show the fall of the loss, and not all of its divergence."""
    finite = [value for value in smoothed if math.isfinite(value)] or [0.0, 1.0]
    low, start = min(finite), finite[0]
    fall = max(start - low, 0.05 * abs(start), 1e-6)
    return low - 0.1 * fall, min(max(finite), start + fall) + 0.3 * fall
