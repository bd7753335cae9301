"""The loss curve of a run, drawn from `metrics.jsonl`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpt2x.runtime.files import replaced
from gpt2x.tracking import jsonl

_REFERENCE_COLORS = ("#2ca02c", "#9467bd", "#8c564b", "#7f7f7f")


def plot_loss(
    metrics_path: Path,
    png_path: Path,
    title: str,
    references: Mapping[str, float] | None = None,
    unit: str = "token",
) -> None:
    """Draw training and validation loss over steps, with the learning rate below.

    Args:
        metrics_path: a `metrics.jsonl`; if a step appears twice, its last line counts.
        png_path: the picture; replaced atomically.
        title: above the picture.
        references: losses for comparison (nats per unit), by name; each becomes a dashed line.
        unit: what the loss is a mean over; tokens also have a perplexity.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the metrics are damaged.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces that it builds a font cache
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = jsonl.read(metrics_path)
    train_steps, train_loss = _series(rows, "train/loss")
    val_steps, val_loss = _series(rows, "val/loss")
    lr_steps, lr = _series(rows, "train/lr")

    figure = Figure(figsize=(9, 5.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    top.set_title(title, loc="left", fontsize=11)
    top.plot(train_steps, train_loss, color="#1f77b4", alpha=0.25, linewidth=0.8, label="training, each step")
    if len(train_loss) >= 20:
        width = max(5, len(train_loss) // 40 | 1)
        smooth = _smooth(train_loss, width)
        top.plot(train_steps, smooth, color="#1f77b4", linewidth=1.6, label=f"training, mean of {width} steps")
    if val_steps:
        label = f"validation, last {val_loss[-1]:.3f}"
        top.plot(val_steps, val_loss, "o-", color="#d62728", markersize=4, linewidth=1.2, label=label)
    for (name, value), color in zip((references or {}).items(), _REFERENCE_COLORS * 9, strict=False):
        top.axhline(value, color=color, linestyle="--", linewidth=1, label=f"{name}, {value:.3f}")
    top.set_ylabel(f"loss (nats per {unit})")
    top.grid(alpha=0.25)
    if train_steps or val_steps or references:
        top.legend(loc="upper right", fontsize=9, framealpha=0.9)
    if unit == "token":
        perplexity = top.secondary_yaxis("right", functions=(_identity, _identity))
        perplexity.set_ylabel("perplexity")
        perplexity.yaxis.set_major_formatter(lambda loss, _: _perplexity(loss))

    bottom.plot(lr_steps, lr, color="#555555", linewidth=1.2)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step (optimizer updates)")
    bottom.set_ylim(bottom=0)
    bottom.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom.grid(alpha=0.25)
    figure.align_ylabels([top, bottom])

    png_path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(png_path) as part:
        figure.savefig(part, format="png")


def _series(rows: Sequence[Mapping[str, float]], key: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a metric in order of steps; non-finite values are gaps."""
    values = {int(row["step"]): float(row[key]) for row in rows if key in row}
    steps = sorted(values)
    return steps, [value if math.isfinite(value := values[step]) else math.nan for step in steps]


def _smooth(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of the `width` values around each value, fewer at the ends; non-finite values do not count."""
    result = []
    for index in range(len(values)):
        around = values[max(0, index - width // 2) : index + width // 2 + 1]
        window = [value for value in around if math.isfinite(value)]
        result.append(sum(window) / len(window) if window else math.nan)
    return result


def _identity(value: float) -> float:
    return value


def _perplexity(loss: float) -> str:
    value = math.exp(min(loss, 700))
    return f"{value:,.0f}" if 100 <= value < 1e6 else f"{value:.3g}"
