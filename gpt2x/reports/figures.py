"""Curves of several runs, as SVG within a page or as a picture.

An SVG has no colors: lines and text have variables of the page's style sheet, so that it fits light and dark pages,
and each line has the class of its group, so that the page can hide it.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.reports.comparison import Comparison
from gpt2x.reports.curves import AXES, SMOOTHED, Axis, curve
from gpt2x.reports.run import is_lower_better
from gpt2x.runtime.files import replaced

# Okabe and Ito's colors for color-blind readers, without the yellow, then two more; light pages, dark pages
PALETTE = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8c42"),
    ("#009e73", "#2fd0a0"),
    ("#b0538f", "#e39ac6"),
    ("#a07800", "#e6c229"),
    ("#5b4bb7", "#a99cf5"),
    ("#5f6b76", "#aeb8c2"),
    ("#a3262a", "#f2777a"),
)
DASHES = ("", "6 2", "2 2", "8 2 2 2", "1 3")
INK, GRID = "#010203", "#040506"  # stand for variables of the style sheet


@dataclass(frozen=True)
class Figure:
    """An inline SVG: curves of one metric against one axis."""

    metric: str
    axis: Axis
    svg: str


def color(group: int, *, is_dark: bool = False) -> str:
    """Return the color of a group's lines."""
    return PALETTE[group % len(PALETTE)][int(is_dark)]


def dashes(group: int) -> str:
    """Return how a group's lines are broken, as SVG's stroke-dasharray; groups of one color differ in it."""
    return DASHES[group // len(PALETTE) % len(DASHES)]


def metrics_of(comparison: Comparison) -> list[str]:
    """Return the metrics that are drawn: losses of training and validation, then the other metrics of validation."""
    names = dict.fromkeys(name for run in comparison.runs for name in run.metrics)
    drawn = [name for name in ("train/loss", "val/loss") if name in names]
    # the perplexity has the curve of the loss
    return drawn + [name for name in names if name.startswith("val/") and name not in (*drawn, "val/ppl")]


def figures(comparison: Comparison) -> list[Figure]:
    """Return each metric's curves against each axis that the runs have."""
    drawn: list[Figure] = []
    for metric in metrics_of(comparison):
        for axis in AXES:
            svg = curves_svg(comparison, metric, axis, f"f{len(drawn)}-")
            if svg:
                drawn.append(Figure(metric, axis, svg))
    return drawn


def curves_svg(comparison: Comparison, metric: str, axis: Axis, prefix: str) -> str:
    """Return one figure as SVG, ids with `prefix`; "" if no run has the metric and the axis."""
    figure = new_figure((7.2, 3.9))
    axes = figure.subplots()
    if not draw_curves(axes, comparison, metric, axis, ink=INK, grid=GRID, color=color_variable):
        return ""
    return to_svg(figure, prefix, f"{metric} against {axis.label}")


def new_figure(size: tuple[float, float]) -> Any:
    """Return an empty figure of `size` inches, which belongs to no window."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it announces that it builds a font cache
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(
    axes: Any, comparison: Comparison, metric: str, axis: Axis, *, ink: str, grid: str, color: Any = color
) -> bool:
    """Draw the curves of a metric; return whether there are any."""
    drawn: list[np.ndarray] = []
    for index, run in enumerate(comparison.runs):
        line = curve(run, metric, axis.name, comparison.width)
        if line is None:
            continue
        group = comparison.group_of[index]
        marker = "o" if metric not in SMOOTHED and len(line[0]) <= 30 else ""
        pattern = [float(length) for length in dashes(group).split()]
        (artist,) = axes.plot(*line, color=color(group), linewidth=1.5, marker=marker, markersize=3)
        if pattern:
            artist.set_dashes([length / 1.5 for length in pattern])
        artist.set_gid(f"line-{group}-{index}")
        drawn.append(line[1])
    if not drawn:
        return False
    limit(axes, drawn, is_lower_better(metric))
    axes.set_ylabel(metric, parse_math=False)
    axes.set_xlabel(axis.label)
    style(axes, ink, grid)
    return True


def limit(axes: Any, curves: Sequence[np.ndarray], is_lower: bool) -> None:
    """Leave out of a long loss curve its first steep part, or peaks, beyond the worst 3 % of all points."""
    points = np.concatenate(curves)
    points = points[np.isfinite(points)]
    if len(points) < 60 or not is_lower:
        return
    low, high = points.min(), np.quantile(points, 0.97)
    if points.max() > high + 0.25 * (high - low) and high > low:
        axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))


def style(axes: Any, ink: str, grid: str) -> None:
    """Give a plot its colors and a light frame."""
    axes.grid(color=grid, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(grid)
    axes.tick_params(colors=ink, length=3)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(ink)
    axes.xaxis.get_offset_text().set_color(ink)
    axes.yaxis.get_offset_text().set_color(ink)
    axes.patch.set_visible(False)


def to_svg(figure: Any, prefix: str, description: str) -> str:
    """Return a figure as an `<svg>` element whose ids begin with `prefix`, with variables for colors."""
    from html import escape

    from matplotlib import rc_context

    figure.patch.set_visible(False)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="line-(\d+)-(\d+)">', r'<g class="line g\1" id="line-\1-\2">', text)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    text = re.sub(r"font: [^;\"]*?(\d+(?:\.\d+)?)px[^;\"]*", r"font-size: \1px", text)
    text = text.replace(INK, "var(--ink)").replace(GRID, "var(--grid)")
    text = re.sub(r"#0a0b([0-9a-f]{2})", lambda match: f"var(--c{int(match.group(1), 16)})", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*" ', r"<svg \1", text)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*" ', r"<svg \1", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def color_variable(group: int) -> str:
    """Return the color that stands for the style sheet's variable of a group's color."""
    return f"#0a0b{group % len(PALETTE):02x}"


def save_curves(comparison: Comparison, target: Path) -> None:
    """Draw the curves against steps as a picture, a plot per metric with one legend."""
    metrics = metrics_of(comparison)
    figure = new_figure((9, 3.6 * max(1, len(metrics))))
    plots = figure.subplots(max(1, len(metrics)), 1, squeeze=False)[:, 0]
    for axes, metric in zip(plots, metrics, strict=False):
        draw_curves(axes, comparison, metric, AXES[0], ink="#222222", grid="#dddddd")
    from matplotlib.lines import Line2D

    handles = []
    for number, group in enumerate(comparison.groups):
        handle = Line2D([], [], color=color(number), label=group.name.replace("$", r"\$"))
        if dashes(number):
            handle.set_dashes([float(length) / 1.5 for length in dashes(number).split()])
        handles.append(handle)
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) > 4 else 1, fontsize=8)
    save_png(figure, target)


def save_png(figure: Any, target: Path) -> None:
    """Write a picture, completely or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced(target) as part:
        figure.savefig(part, format="png")
