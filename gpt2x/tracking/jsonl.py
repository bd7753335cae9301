r"""`metrics.jsonl`, the truth about a run: one JSON object per line, one line per step or evaluation.

Non-finite values are strings, as `gpt2x.runtime.json_text.encoded` has them, and `read` turns them back.
"""

from __future__ import annotations

import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.runtime import json_text
from gpt2x.runtime.appended import Appended, asides, intact_length

SPEED = "perf/"  # how the metrics begin that differ each time a step is repeated

Line = tuple[int, float, dict[str, float]]  # step, time (unix seconds), metrics

_NAMES = tuple(json_text.NON_FINITE)  # a tuple: a value of a damaged line may have no hash


@dataclass(frozen=True)
class Cut:
    """What a resumed run continues after, and what it does not.

    Attributes:
        kept: the lines up to the step, each step once.
        moved: all other lines.
        damaged: the numbers of the lines before the last that are no metrics, or whose step is not in its place.
        missing: the steps without a line, as (first, last).
        is_altered: the lines are not those that the checkpoint refers to.
        aside: the file that has `moved`; None if there is none.
    """

    kept: bytes
    moved: bytes = b""
    damaged: tuple[int, ...] = ()
    missing: tuple[tuple[int, int], ...] = ()
    is_altered: bool = False
    aside: Path | None = None


class MetricsLog:
    """Appends whole lines to `metrics.jsonl`; after `rewind(step)`, of later steps only, each once."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.file = Appended(self.path)
        self._is_checked = False
        self._last_step: int | None = None
        self._earlier: dict[int, list[dict[str, Any]]] = {}  # lines that were moved aside, by step

    def append(self, step: int, metrics: Mapping[str, float], time_s: float | None = None) -> Line:
        """Write one line; if the disk rejects it, say so, and try again with the next one.

        A resumed run repeats the steps after its checkpoint. A step that has become the same, except for its speed,
        gets the line back that it had: a tracker may have that one already, and cannot take it back.

        Args:
            step: optimizer steps done.
            metrics: floats, written so that they read back bit for bit.
            time_s: unix seconds; None: now.

        Returns:
            What was written, for a tracker; the time is in unix seconds, to the millisecond.

        Raises:
            ValueError: after `rewind`, `step` is not after the last one.
        """
        time_s = round(time.time() if time_s is None else time_s, 3)
        line = {"step": int(step), "time": time_s} | encoded(metrics)
        same = (row for row in self._earlier.pop(int(step), []) if _result(row) == _result(line))
        line = next(same, line)
        if not self._is_checked:
            self._rewind(None, None)
        if self._last_step is not None:
            if step <= self._last_step:
                raise ValueError(f"{self.path} has step {self._last_step}, so step {step} cannot follow")
            self._last_step = step
        self.file.append(json.dumps(line, allow_nan=False).encode() + b"\n")
        return _line(line)

    def rewind(self, step: int, mark: Mapping[str, Any] | None = None) -> Cut:
        """Make `step` the last step of the file, so that a resumed run repeats no line.

        All other lines are moved to `metrics.<n>.jsonl` in the same directory.

        Args:
            step: optimizer steps done at the checkpoint; 0 at the start of a run.
            mark: what the checkpoint refers to; None if it does not say so.

        Raises:
            UserError: the file cannot be read or written.
        """
        cut = self._rewind(step, mark)
        self._last_step = step
        self._earlier = _moved_after(step, self.path)
        return cut

    def _rewind(self, step: int | None, mark: Mapping[str, Any] | None) -> Cut:
        self.file.close()
        self._is_checked = True
        try:
            cut = cut_at(self.path.read_bytes() if self.path.exists() else b"", step, mark)
            return replace(cut, aside=self.file.cut(cut.kept, cut.moved)) if cut.moved else cut
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read or written ({error.strerror or error}), so no line can follow. Change its "
                "permissions, free space, or move it away."
            ) from error

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        self.file.close()


def _moved_after(step: int, path: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the lines after `step` that were ever moved aside, by step, those of the newest file first."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for aside in reversed(asides(path)):
        for raw in aside.read_bytes().splitlines(keepends=True):
            row = _parse(raw)
            if row is not None and row["step"] > step:
                rows.setdefault(row["step"], []).append(row)
    return rows


def cut_at(content: bytes, step: int | None, mark: Mapping[str, Any] | None) -> Cut:
    """Return which lines of a `metrics.jsonl` belong to the steps up to `step`; None: all steps, in any order.

    If the part that `mark` describes is intact, that is the answer. Otherwise each line is looked at. A step that is
    twice there counts where it was written last.
    """
    length = intact_length(content, mark)
    if length is not None:
        return Cut(content[:length], content[length:])
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]  # torn, or empty
    rows = [_parse(line) for line in lines]
    steps = [None if row is None or (step is not None and row["step"] > step) else row["step"] for row in rows]
    kept = {index for index, at in enumerate(steps) if at is not None}
    if step is not None:
        kept = set(_increasing(steps))
    is_later = [row is not None and at is None for row, at in zip(rows, steps, strict=True)]
    last = max((index for index, line in enumerate(lines) if line), default=0)
    return Cut(
        b"".join(line for index, line in enumerate(lines) if index in kept),
        b"".join(line for index, line in enumerate(lines) if index not in kept),
        tuple(index + 1 for index in range(last) if index not in kept and not is_later[index]),
        _gaps([at for index in sorted(kept) if (at := steps[index]) is not None], step),
        mark is not None,
    )


def _increasing(steps: list[int | None]) -> list[int]:
    """Return the indexes of the longest sequence of growing steps, of equal ones the later (patience sorting)."""
    ends: list[int] = []  # the smallest end of a sequence of each length
    last: list[int] = []  # its index
    before: dict[int, int | None] = {}
    for index, step in enumerate(steps):
        if step is None:
            continue
        length = bisect_left(ends, step)
        before[index] = last[length - 1] if length else None
        ends[length : length + 1], last[length : length + 1] = [step], [index]
    sequence, at = [], last[-1] if last else None
    while at is not None:
        sequence.append(at)
        at = before[at]
    return sequence[::-1]


def _gaps(steps: list[int], last: int | None) -> tuple[tuple[int, int], ...]:
    """Return the ranges of steps from 1 to `last` that are not among the (growing) `steps`."""
    if last is None:
        return ()
    edges = [0, *steps, last + 1]
    return tuple((a + 1, b - 1) for a, b in pairwise(edges) if b - a > 1)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`: `step`, `time` (unix seconds) and the metrics, without a torn last line.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line before the last is not a metrics line.
    """
    return list(_rows(path))


def read_after(path: Path, offset: int, num_bytes: int = 2**22) -> tuple[list[Line], int, int]:
    """Return the whole lines after the first `offset` bytes of a `metrics.jsonl`, at most `num_bytes` of them.

    Returns:
        The lines, the offset after them, and the number of lines that are damaged and left out.

    Raises:
        OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        file.seek(offset)
        text = file.read(num_bytes)
        if len(text) == num_bytes:
            text += file.readline()
    whole = text[: text.rfind(b"\n") + 1]
    rows = [_parse(raw + b"\n") for raw in whole.split(b"\n")[:-1]]
    lines = [_line(row) for row in rows if row is not None]
    return lines, offset + len(whole), len(rows) - len(lines)


def encoded(metrics: Mapping[str, float]) -> dict[str, float | str]:
    """Return metrics as JSON can hold them."""
    return {key: json_text.encoded(float(value)) for key, value in metrics.items()}


def last_step(path: Path) -> int | None:
    """Return the step of the last line of a `metrics.jsonl`; None if there is no line.

    Raises:
        OSError: the file cannot be read.
        ValueError: as `read`.
    """
    rows = read(path) if path.exists() else []
    return int(rows[-1]["step"]) if rows else None


def last_time(path: Path) -> float | None:
    """Return the time (unix seconds) of the last whole line of a `metrics.jsonl`; None if there is none."""
    if not path.exists():
        return None
    rows = (_parse(raw) for raw in reversed(path.read_bytes().splitlines(keepends=True)))
    return next((float(row["time"]) for row in rows if row is not None), None)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    lines = Path(path).read_bytes().split(b"\n")
    for number, raw in enumerate(lines, 1):
        row = _parse(raw + b"\n") if number < len(lines) else None
        if row is not None:
            yield json_text.decoded(row)
        elif number < len(lines) - (not lines[-1]):
            raise ValueError(f"{path}, line {number}: not a metrics line")


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Return the values of a line, or None if it is not what `MetricsLog` writes."""
    if not raw.endswith(b"\n"):
        return None
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
        return None
    is_metrics = all(type(value) in (int, float) or value in _NAMES for value in row.values())
    return row if is_metrics and type(row.get("time")) in (int, float) else None


def _line(row: Mapping[str, Any]) -> Line:
    values = json_text.decoded(row)
    return values.pop("step"), values.pop("time"), values


def _result(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a step that is repeated has again."""
    return {key: value for key, value in row.items() if key != "time" and not key.startswith(SPEED)}
