"""`tracker=csv`: `metrics.csv` beside `metrics.jsonl`, one row per step, for a spreadsheet or `pandas.read_csv`.

The first columns are `step` and `time` (unix seconds), then the metrics in the order in which they first appear. A step
without a metric has an empty cell. When a metric is new, and when a run is resumed, the file is written again from
`metrics.jsonl`, so that it always has one header and each step once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from gpt2x.config import TrackerConfig
from gpt2x.runtime.files import replaced
from gpt2x.tracking import jsonl
from gpt2x.tracking.guarded import Guarded
from gpt2x.tracking.tracker import RunInfo

FILE = "metrics.csv"  # in the run directory
FIRST_COLUMNS = ("step", "time")


class CsvTracker:
    """A table of the metrics; configuration, tags and pictures are files of the run directory already."""

    def __init__(self) -> None:
        self._columns: list[str] = []
        self._file: TextIO | None = None

    def start(self, run: RunInfo) -> None:
        """Write the table of what `metrics.jsonl` has, if it has something."""
        self._metrics, self._path = Path(run.run_dir) / "metrics.jsonl", Path(run.run_dir) / FILE
        if self._metrics.exists():
            self._rewrite()

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Append a row, or write the table again if a column is new."""
        if self._file is None or not set(metrics) <= set(self._columns):
            self._rewrite()  # `metrics.jsonl` has this line already
        else:
            self._file.write(_text([{"step": step, "time": time_s, **metrics}], self._columns))
            self._file.flush()

    def log_artifact(self, path: Path) -> None:
        """Do nothing: a table has no files."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing: a table has no tags."""

    def finish(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _rewrite(self) -> None:
        self._columns, text = _table(self._metrics)
        with replaced(self._path) as part:
            part.write_text(text, encoding="utf-8")
        if self._file is not None:
            self._file.close()
        self._file = self._path.open("a", encoding="utf-8", newline="")


def repair(run_dir: Path) -> bool:
    """Write `metrics.csv` again if it is not what `metrics.jsonl` says; return whether it was not.

    Raises:
        OSError, ValueError: a file cannot be read or written, or `metrics.jsonl` is damaged.
    """
    _, text = _table(run_dir / "metrics.jsonl")
    path = run_dir / FILE
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")
    return True


def _table(metrics: Path) -> tuple[list[str], str]:
    """Return the columns and the text of the whole table."""
    rows = jsonl.read(metrics)
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *(key for row in rows for key in row)]))
    return columns, ",".join(map(_quoted, columns)) + "\n" + _text(rows, columns)


def _text(rows: Iterable[Mapping[str, Any]], columns: list[str]) -> str:
    """Return rows as lines; floats read back bit for bit, those that are not finite are nan, inf and -inf."""
    buffer = io.StringIO()
    csv.DictWriter(buffer, columns, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _quoted(column: str) -> str:
    return _text([{"name": column}], ["name"]).rstrip("\n")


def create(config: TrackerConfig, outputs: Path) -> Guarded:
    """Return the writer of `metrics.csv`."""
    return Guarded("csv", CsvTracker(), repair=repair)
