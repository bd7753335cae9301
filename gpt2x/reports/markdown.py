"""A comparison as Markdown, with its curves as a picture beside the file."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2x.reports import comparison as tables
from gpt2x.reports.comparison import OF_STATISTICS, Comparison
from gpt2x.reports.figures import metrics_of, save_curves
from gpt2x.reports.tables import Table

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def write_markdown(comparison: Comparison, target: Path) -> None:
    """Write the report, and the curves beside it as a picture of the same name.

    Raises:
        OSError: a file cannot be written.
    """
    picture = target.with_suffix(".png") if metrics_of(comparison) else None
    if picture:
        save_curves(comparison, picture)
    target.write_text(to_markdown(comparison, picture), encoding="utf-8", errors="replace")


def to_markdown(comparison: Comparison, picture: Path | None = None) -> str:
    """Return the report; `picture` is linked by its name."""
    parts = [f"# {escaped(comparison.title)}", escaped(comparison.summary), to_table(tables.results(comparison))]
    if picture:
        parts.append(f"![curves of the losses against steps]({picture.name.replace(' ', '%20')})")
    if comparison.has_seeds:
        parts += ["## Over seeds", OF_STATISTICS, *[to_table(table, "###") for table in tables.seeds(comparison)]]
    speed = tables.speed(comparison)
    parts += [to_table(speed) if speed.rows else "", to_table(tables.differences(comparison))]
    samples = [(name, run.samples) for name, run in zip(comparison.names, comparison.runs, strict=True) if run.samples]
    if samples:
        parts.append("## Samples")
    for name, drawn in samples:
        assert drawn
        parts.append(f"### {escaped(name)}, step {drawn[0]:,}")
        parts += [fenced(each) for each in drawn[1]]
    lines = [f"- {escaped(name)}: `{run.path}`" for name, run in zip(comparison.names, comparison.runs, strict=True)]
    parts += ["## Run directories", "\n".join(lines)]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_table(table: Table, head: str = "##") -> str:
    """Return a table under its title."""
    lines = [" | ".join(escaped(column) or " " for column in table.columns), "|".join("---" for _ in table.columns)]
    lines += [" | ".join(escaped(cell.text) for cell in row) for row in table.rows]
    body = "\n".join(f"| {line} |" for line in lines) if table.rows else ""
    return "\n\n".join(part for part in (f"{head} {escaped(table.title)}", body, escaped(table.note)) if part)


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line."""
    text = " ".join(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).split())
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", text)


def fenced(text: str) -> str:
    """Return text as a block that shows it as it is, whatever backticks it has."""
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
