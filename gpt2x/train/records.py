"""metrics.jsonl and samples.txt of a run: what a checkpoint refers to, and what a resumed run makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.runtime.appended import Appended, intact_length
from gpt2x.runtime.console import console
from gpt2x.tracking import MetricsLog
from gpt2x.tracking.jsonl import Cut
from gpt2x.train.samples import length_at

METRICS, SAMPLES = "metrics.jsonl", "samples.txt"
KEY = "records"  # within a checkpoint's loop_state
SHOWN = 5  # lines or ranges in a message


class Records:
    """The files of a run that grow with its steps; only its main process has them.

    Args:
        run_dir: of the run.
    """

    def __init__(self, run_dir: Path):
        self.metrics = MetricsLog(run_dir / METRICS)
        self.samples = Appended(run_dir / SAMPLES)

    def begin(self, step: int, marks: Mapping[str, Any] | None = None, *, is_branch: bool = False) -> None:
        """Keep what belongs to the steps up to `step`, move the rest aside, and say what is damaged or missing.

        Args:
            step: the checkpoint's; 0: the run begins.
            marks: what the checkpoint says about the files; None: nothing.
            is_branch: the run directory is a new one, into which only metrics were copied.

        Raises:
            UserError: a file cannot be read or written.
        """
        marks = marks or {}
        cut = self.metrics.rewind(step, marks.get(METRICS))
        for text in metrics_notices(cut, step):
            console.warn(text)
        if not step and cut.aside:
            console.notice(f"{METRICS}: the lines of an earlier start were moved to {cut.aside.name}")
        self.begin_samples(step, None if is_branch else marks.get(SAMPLES))

    def begin_samples(self, step: int, mark: Mapping[str, Any] | None) -> None:
        """Keep the samples up to `step`, and move the others aside.

        Raises:
            UserError: the file cannot be read or written.
        """
        path, aside = self.samples.path, None
        try:
            content = path.read_bytes() if path.exists() else b""
            length = intact_length(content, mark)
            if length is None:
                length = length_at(content, step)
            if length < len(content):
                aside = self.samples.cut(content[:length], content[length:])
        except OSError as error:
            raise UserError(
                f"{path} cannot be read or written ({error.strerror or error}). Change its permissions, free space, "
                "or move it away."
            ) from error
        if mark is not None and intact_length(content, mark) is None:
            moved = f"; the samples after step {step} are in {aside.name}" if aside else ""
            console.warn(f"{SAMPLES} is not what it was at the checkpoint: samples are missing or changed{moved}")

    def marks(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: length and hash of each file now."""
        return {METRICS: self.metrics.file.mark(), SAMPLES: self.samples.mark()}

    def sync(self) -> None:
        """Put both files on the disk (fsync); what fails is said, and tried again at the next checkpoint."""
        self.metrics.file.sync()
        self.samples.sync()

    def close(self) -> None:
        """Close both."""
        self.metrics.close()
        self.samples.close()


def metrics_notices(cut: Cut, step: int) -> list[str]:
    """Return what is to be said about the lines of metrics.jsonl up to the step of a checkpoint."""
    texts = []
    if cut.damaged and cut.aside:
        texts.append(f"{METRICS}: damaged line{listed(ranges(cut.damaged))}; moved to {cut.aside.name}")
    if cut.missing:
        texts.append(f"{METRICS} lacks step{listed(cut.missing)} of the {step} before the checkpoint")
    if cut.is_altered and not texts:
        texts.append(f"{METRICS} has a line for each step, but it is not what it was at the checkpoint")
    return texts


def ranges(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Return growing numbers as (first, last) of those that follow each other."""
    joined: list[tuple[int, int]] = []
    for number in numbers:
        is_next = joined and joined[-1][1] == number - 1
        joined[-1 if is_next else len(joined) :] = [(joined[-1][0] if is_next else number, number)]
    return tuple(joined)


def listed(pairs: tuple[tuple[int, int], ...]) -> str:
    """Return ranges as text after a word in the singular: " 4", or "s 4, 7-9 and 3 more ranges"."""
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in pairs[:SHOWN]]
    more = f" and {len(pairs) - SHOWN} more ranges" if len(pairs) > SHOWN else ""
    is_one = len(pairs) == 1 and pairs[0][0] == pairs[0][1]
    return f"{'' if is_one else 's'} {', '.join(texts)}{more}"
