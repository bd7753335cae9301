"""The small report of one run, `report.html` in its directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gpt2x.config.keys import spell
from gpt2x.reports import comparison as tables
from gpt2x.reports.comparison import Comparison, compare
from gpt2x.reports.html import directories, messages, section
from gpt2x.reports.page import page, picture, table, words
from gpt2x.reports.run import PICTURE, Run, read_run
from gpt2x.reports.tables import Table, metric_text, number, text
from gpt2x.runtime.console import console
from gpt2x.runtime.files import replaced
from gpt2x.runtime.jobs import FINISHED, RUNNING

REPORT = "report.html"
MOST_VALIDATIONS = 40  # rows of the table; more are thinned


def report_run(run_dir: Path) -> Path | None:
    """Write `report.html` of a run that has ended; a failure is a warning, since the run itself is well.

    Returns:
        The file, or None.
    """
    try:
        target = run_dir / REPORT
        run = read_run(run_dir)
        run = replace(run, status=FINISHED) if run.status == RUNNING else run  # this is its last work
        page = run_page(run)
        with replaced(target) as part:
            part.write_text(page, encoding="utf-8")
    except Exception as error:  # a full disk, metrics that somebody edited, a fault of this module
        console.warn(f"no {REPORT} of this run ({' '.join(str(error).split()) or type(error).__name__})")
        return None
    return target


def run_page(run: Run) -> str:
    """Return the page of one run: results, loss.png, validations, samples, speed, configuration, command.

    Raises:
        UserError: the run has no metrics.
    """
    comparison = compare([run])
    png = run.path / PICTURE

    def facts(title: str, build: Callable[[Comparison], Table]) -> str:
        content = build(comparison)
        return section(title, table(transposed(content), is_sortable=False)) if content.rows else ""

    parts = [
        f"<h1>{words(comparison.title)}</h1><p class=soft>{words(run.status)} at step {run.step:,}</p>",
        messages(comparison),
        f"<div class=panels>{facts('Results', tables.results)}{facts('Speed and memory', tables.speed)}</div>",
        picture(png.read_bytes(), "training and validation loss") if png.is_file() else "",
        section("Validations", table(validations(comparison))) if comparison.validated else "",
        samples(run),
        configuration(run),
        directories(comparison),
    ]
    return page(f"gpt2x: {comparison.title}", "\n".join(filter(None, parts)))


def transposed(content: Table) -> Table:
    """Return the table of a single run with a row per column."""
    pairs = zip(content.columns[1:], content.rows[0][1:], strict=True)
    return Table(content.title, ["", "value"], [[text(name), cell] for name, cell in pairs], content.note)


def validations(comparison: Comparison) -> Table:
    """Return the metrics of validations by step."""
    (run,) = comparison.runs
    rows = [row for row in run.rows if any(name in row for name in comparison.validated)]
    every = -(-len(rows) // MOST_VALIDATIONS)
    shown = rows[::-1][::every][::-1] if every else []
    cells = [
        [number(row["step"], ",d"), *[number(row.get(name), metric_text) for name in comparison.validated]]
        for row in shown
    ]
    note = f"Every {every}th validation, and the last one." if every > 1 else ""
    return Table("Validations", ["step", *comparison.validated], cells, note)


def samples(run: Run) -> str:
    """Return what the model wrote last."""
    drawn = run.samples
    if not drawn:
        return ""
    texts = "".join(f"<pre>{words(each)}</pre>" for each in drawn[1])
    return section(f"Samples at step {drawn[0]:,}", texts)


def configuration(run: Run) -> str:
    """Return the whole configuration, folded."""
    rows = [[text(key), text(spell(value))] for key, value in run.config.items()]
    body = table(Table("Configuration", ["key", "value"], rows), is_sortable=False)
    return section("Configuration", f"<details><summary>{len(rows)} keys</summary>{body}</details>")
