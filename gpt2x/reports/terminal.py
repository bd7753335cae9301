"""A comparison on the terminal: runs have numbers there, since their names are long and a terminal is narrow."""

from __future__ import annotations

from gpt2x.reports import comparison as tables
from gpt2x.reports.comparison import OF_STATISTICS, Comparison
from gpt2x.reports.run import DAMAGED
from gpt2x.reports.tables import Table
from gpt2x.runtime.console import console

LEFT_OUT = {"compile", "tokens", "last val/ppl"}  # which follow from other columns, or matter least


def show(comparison: Comparison) -> None:
    """Print the tables; a run that failed or is damaged says why."""
    rows = zip(comparison.names, comparison.runs, strict=True)
    console.table("Runs", ["", "run", "status"], [[str(i), name, run.status] for i, (name, run) in enumerate(rows, 1)])
    show_differences(comparison)
    show_table(numbered(tables.results(comparison)))
    speed = tables.speed(comparison)
    if speed.rows:
        show_table(numbered(speed))
    if comparison.has_seeds:
        for table in tables.seeds(comparison, next(iter(comparison.measured()))):
            show_table(with_run_numbers(table, comparison))
        console.notice(OF_STATISTICS)
    if comparison.summary:
        console.notice(comparison.summary)
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        if run.status == DAMAGED:
            console.warn(f"{name}: {run.message}")
        elif run.message:
            console.notice(f"{name} {run.status}: {run.message}")


def numbered(table: Table) -> Table:
    """Return a table of runs with their numbers instead of their names, without the least columns."""
    kept = [index for index, name in enumerate(table.columns) if index and name not in LEFT_OUT | {"status"}]
    rows = [[tables.text(number), *[row[index] for index in kept]] for number, row in enumerate(table.rows, 1)]
    return Table(table.title, ["", *[table.columns[index] for index in kept]], rows, table.note)


def with_run_numbers(table: Table, comparison: Comparison) -> Table:
    """Return a table of groups with the numbers of their runs instead of their names."""
    rows = [
        [tables.text(", ".join(str(index + 1) for index in comparison.groups[number].members)), *row[1:]]
        for number, row in zip(table.groups, table.rows, strict=True)
    ]
    return Table(table.title, ["runs", *table.columns[1:]], rows, table.note)


def show_table(table: Table) -> None:
    """Print one table and its note."""
    console.table(table.title, table.columns, [[cell.text for cell in row] for row in table.rows])
    if table.note:
        console.notice(table.note)


def show_differences(comparison: Comparison) -> None:
    """Print each key that differs with its values."""
    rows = []
    for key in comparison.differing:
        values = dict.fromkeys(each[key] for each in comparison.values if key in each)
        rows.append([key, ", ".join(values)])
    if rows:
        console.table("Configurations differ in", ["key", "values"], rows)
