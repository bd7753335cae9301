"""A picture of a classifier's confusion matrix and of the scores of each class."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gpt2x.runtime.files import replaced


def plot_confusion(
    confusion: np.ndarray, names: Sequence[str], scores: Mapping[str, np.ndarray], png_path: Path, title: str
) -> None:
    """Draw the counts, shaded by their fraction of the true class, above a table of each class' scores.

    Args:
        confusion: (K, K) counts; rows are true classes, columns are predicted classes.
        names: names of the K classes.
        scores: columns of the table by name, (K,) each; integers are shown without decimals.
        png_path: the picture; replaced atomically.
        title: above the picture.

    Raises:
        OSError: the file cannot be written.
    """
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces that it builds a font cache
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(names)
    figure = Figure(figsize=(max(6.0, 1.1 * count + 2.5), 1.1 * count + 3.2 + 0.3 * count), dpi=120)
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, height_ratios=[count + 2, 0.5 * count + 1])
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    top.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(count, count):
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{int(confusion[row, column]):,}\n{shares[row, column]:.0%}"
        top.text(column, row, text, ha="center", va="center", color=color, fontsize=9)
    top.set_xticks(range(count), names)
    top.set_yticks(range(count), names)
    top.set_xlabel("predicted")
    top.set_ylabel("true")
    top.set_title(title, fontsize=11)

    bottom.axis("off")
    cells = [[_shown(values[row]) for values in scores.values()] for row in range(count)]
    table = bottom.table(cells, rowLabels=list(names), colLabels=list(scores), loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(9)

    png_path.parent.mkdir(parents=True, exist_ok=True)
    with replaced(png_path) as part:
        figure.savefig(part, format="png")


def _shown(value: np.generic) -> str:
    return f"{int(value):,}" if isinstance(value, np.integer) else f"{value:.3f}"
