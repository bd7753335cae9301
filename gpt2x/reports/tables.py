"""Tables of a report, whatever they are written as."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from gpt2x.runtime.console import format_duration


@dataclass(frozen=True)
class Cell:
    """An entry of a table.

    Attributes:
        text: what is shown.
        value: what rows are sorted by.
        kind: a class of the style sheet, such as `failed`; "" for none.
    """

    text: str
    value: float | str | None = None
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: above it.
        columns: the heads.
        rows: as many cells each as there are columns.
        note: what a reader has to know, below it.
        runs: of each row the number of the group whose color it has; [] if rows are no runs.
    """

    title: str
    columns: list[str]
    rows: list[list[Cell]]
    note: str = ""
    groups: list[int] = field(default_factory=list)

    def without_empty_columns(self) -> Table:
        """Return the table without columns in which no row shows anything."""
        shown = [index for index in range(len(self.columns)) if any(row[index].text for row in self.rows)]
        columns = [self.columns[index] for index in shown]
        return Table(
            self.title, columns, [[row[index] for index in shown] for row in self.rows], self.note, self.groups
        )


def text(value: object) -> Cell:
    """Return a cell of words."""
    return Cell(str(value), str(value))


def state(status: str) -> Cell:
    """Return a cell of a run's status."""
    return Cell(status, status, status.split()[0])


def number(value: float | None, form: Callable[[float], str] | str = ".4f") -> Cell:
    """Return a cell of a number, empty for None; `form` is a format, or a function that writes the number."""
    if value is None:
        return Cell("", None)
    if not math.isfinite(value):
        return Cell(str(value), value)
    return Cell(format(value, form) if isinstance(form, str) else form(value), value)


def metric_text(value: float) -> str:
    """Return a metric with four decimals, a large one with fewer."""
    size = abs(value)
    return (
        f"{value:.4f}"
        if size < 100
        else f"{value:.2f}"
        if size < 1e4
        else f"{value:,.0f}"
        if size < 1e9
        else f"{value:.4g}"
    )


def duration(seconds: float) -> str:
    """Return seconds as `12.3 s`, from ten minutes on as `0:12:34`."""
    return f"{seconds:.1f} s" if seconds < 600 else format_duration(seconds)


def scientific(value: float) -> str:
    """Return `1.2e15`."""
    return f"{value:.2e}".replace("e+0", "e").replace("e+", "e")
