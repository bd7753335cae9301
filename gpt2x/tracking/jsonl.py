r"""`metrics.jsonl`, the truth about a run: one JSON object per line, one line per step or evaluation.

JSON has no NaN: non-finite values are the strings "NaN", "Infinity" and "-Infinity", and `read` turns them back.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class MetricsLog:
    """Appends whole lines to `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def append(self, step: int, metrics: Mapping[str, float], time_s: float | None = None) -> float:
        """Write one line and flush it.

        Args:
            step: optimizer steps done.
            metrics: floats, written so that they read back bit for bit.
            time_s: unix seconds; None: now.

        Returns:
            The time that was written (unix seconds, to the millisecond); a tracker repeats it.

        Raises:
            OSError: the file cannot be written.
        """
        time_s = round(time.time() if time_s is None else time_s, 3)
        line = {"step": int(step), "time": time_s} | {key: _encode(value) for key, value in metrics.items()}
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self.rewind(None)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        return time_s

    def rewind(self, step: int | None) -> int:
        """Make `step` the last step of the file, so that a resumed run repeats no line.

        Lines after `step`, and a last line torn by a crash, are moved to `metrics.<n>.jsonl` in the same directory.

        Args:
            step: optimizer steps done at the checkpoint; None: move only a torn line.

        Returns:
            The number of lines moved.
        """
        self.close()
        if not self.path.exists():
            return 0
        kept: list[bytes] = []
        moved: list[bytes] = []
        for raw in self.path.read_bytes().splitlines(keepends=True):
            row = _parse(raw)
            is_kept = row is not None and (step is None or row["step"] <= step)
            (kept if is_kept else moved).append(raw)
        if moved:
            _write(self._next_aside(), moved)  # first: a crash here loses nothing
            part = self.path.with_suffix(".jsonl.part")
            _write(part, kept)
            os.replace(part, self.path)
        return len(moved)

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_aside(self) -> Path:
        number = 1
        while (path := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        return path


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`: `step`, `time` (unix seconds) and the metrics, without a torn last line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line before the last is not a metrics line.
    """
    return list(_rows(path))


def last_step(path: Path) -> int | None:
    """Return the step of the last line of a `metrics.jsonl`; None if there is no line.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read`.
    """
    rows = read(path) if path.exists() else []
    return int(rows[-1]["step"]) if rows else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = Path(path).read_bytes().splitlines(keepends=True)
    for number, raw in enumerate(lines, 1):
        row = _parse(raw)
        if row is not None:
            yield {
                key: _NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in row.items()
            }
        elif number < len(lines):
            raise ValueError(f"{path}, line {number}: not a metrics line")


def _parse(raw: bytes) -> dict[str, Any] | None:
    if not raw.endswith(b"\n"):
        return None
    try:
        row = json.loads(raw)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int) and isinstance(row.get("time"), (int, float))
    return row if is_row else None


def _encode(value: float) -> float | str:
    value = float(value)
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _write(path: Path, lines: list[bytes]) -> None:
    with path.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
