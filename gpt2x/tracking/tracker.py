"""What a run tells a tracker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

STATUSES = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class DataInput:
    """A data set that a run reads.

    Attributes:
        name: the data set's.
        digest: a hash of the rows or the text; runs with the same one read the same.
        context: `train`, `validation` or `evaluation`.
        source: the path, or the address of the download, that it comes from.
        num_rows: rows, windows or texts; None: not counted.
        num_tokens: None: not counted.
    """

    name: str
    digest: str
    context: str
    source: str
    num_rows: int | None = None
    num_tokens: int | None = None


@dataclass(frozen=True)
class RunInfo:
    """A run as a tracker shows it.

    Attributes:
        experiment: the group of runs, by default the task's name.
        run_name: see `gpt2x.tracking.description`; of a job, what it varies.
        run_dir: the directory of `metrics.jsonl`.
        params: the resolved configuration, nested.
        tags: provenance, see `gpt2x.tracking.provenance.run_tags`.
        resume_id: the tracker's id of the run to continue; None: the id noted in `run_dir`, else a new run.
        sweep_dir: directory of the multirun if the run is one of its jobs; its parent run belongs to this directory.
        sweep_name: name of the parent run.
        is_sweep: the run is such a parent.
        inputs: the data sets that the run reads.
    """

    experiment: str
    run_name: str
    run_dir: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    resume_id: str | None = None
    sweep_dir: Path | None = None
    sweep_name: str = ""
    is_sweep: bool = False
    inputs: Sequence[DataInput] = ()


class Tracker(Protocol):
    """A mirror of a run. No method waits for a network, and none fails because a server does."""

    def start(self, run: RunInfo) -> None:
        """Open the run."""

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Mirror one line of `metrics.jsonl`; `time_s` is the line's time (unix seconds)."""

    def log_artifact(self, path: Path) -> None:
        """Mirror a file or a directory."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run, in place of earlier values."""

    def finish(self, status: str) -> None:
        """Close the run as FINISHED, FAILED or KILLED; wait a bounded time for what is still queued."""


def require_status(status: str) -> None:
    """Raise ValueError unless a status is FINISHED, FAILED or KILLED."""
    if status not in STATUSES:
        raise ValueError(f"status={status!r} is not one of {', '.join(STATUSES)}")


@contextmanager
def tracked(tracker: Tracker, run: RunInfo, files_at_end: Sequence[str] = ()) -> Iterator[None]:
    """Open a tracker's run with its `config.yaml`, and close it with the status of the block.

    Args:
        tracker: the mirror.
        run: what it shows.
        files_at_end: names of files in the run directory that are sent at the end, if they exist.
    """
    tracker.start(run)
    status = "FAILED"
    try:
        tracker.log_artifact(run.run_dir / "config.yaml")
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        for name in files_at_end:
            if (run.run_dir / name).is_file():
                tracker.log_artifact(run.run_dir / name)
        tracker.finish(status)
