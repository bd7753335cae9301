"""`mlflow_run.json`: what a run directory knows about its MLflow run.

The process of the run writes what MLflow shall show (`tags`, `artifacts`, `status`); the process that sends it writes
what MLflow has made of it (`run_id`, `run_name`, `metric_names`). `RunRecord.update` changes some values and leaves the
others as the file has them, so that neither takes back what the other has written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from gpt2x.errors import UserError
from gpt2x.runtime.files import replaced
from gpt2x.runtime.locks import lock, lock_file, release
from gpt2x.tracking.sqlite_store import ARTIFACTS, moved_uri, sqlite_file
from gpt2x.tracking.tracker import STATUSES

RECORD_NAME = "mlflow_run.json"
LIVE_NAME = ".mlflow_run.live"  # locked by the process of a run as long as it lives, on whatever signal it ends
SWEEP_LOCK_NAME = ".mlflow_run.lock"  # in the directory of a sweep: one process at a time creates the parent run
SENDER_LOCK_NAME = ".mlflow_run.sender"  # one process at a time sends what a directory has
SAVE_WAIT_S = 1.0  # for another process that saves the record, which takes it a millisecond


@dataclass
class RunRecord:
    """What `resume` and `sync` need to find or create the MLflow run of a directory.

    Attributes:
        uri: the store.
        artifact_root: the folder of artifacts; None: the server decides.
        experiment: by name.
        run_name: by which MLflow lists the run.
        is_name_fixed: the user chose the name, so that no number tells it from an equal one.
        params: the configuration, by dotted keys.
        tags: in the form in which MLflow gets them; `run_dir` is the absolute run directory.
        metric_names: of metrics whose name in MLflow differs from their key, by key.
        inputs: the data sets, as `gpt2x.tracking.tracker.DataInput`.
        start_time_s: unix seconds.
        end_time_s: unix seconds; 0: it has not ended.
        run_id: None if MLflow has not answered yet.
        artifacts: files, relative to the run directory if they are in it.
        status: RUNNING, FINISHED, FAILED or KILLED.
        system_metrics: MLflow shall have CPU, memory, disk and network.
        session: of the process that trains; each start has its own.
        sweep_dir: of a job, relative to the run directory; its record is that of the parent run. None: no job.
        sweep_name: of a job: how the parent run is called.
        is_sweep: it is such a parent run.
    """

    uri: str
    artifact_root: str | None
    experiment: str
    run_name: str
    is_name_fixed: bool = False
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    inputs: list[dict[str, str | int]] = field(default_factory=list)
    start_time_s: float = 0.0
    end_time_s: float = 0.0
    run_id: str | None = None
    metric_names: dict[str, str] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    status: str = "RUNNING"
    system_metrics: bool = False
    session: str = ""
    sweep_dir: str | None = None
    sweep_name: str = ""
    is_sweep: bool = False

    @classmethod
    def load(cls, run_dir: Path) -> RunRecord | None:
        """Return the record of a run directory, or None; if it was moved with its store, with the store's new place.

        Raises:
            UserError: the file is damaged.
        """
        path = run_dir / RECORD_NAME
        if not path.exists():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            names = {each.name for each in fields(cls)}
            record = cls(**{key: value for key, value in values.items() if key in names})
            record._follow(run_dir.absolute())
            return record
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to start a new MLflow run.") from error

    def _follow(self, run_dir: Path) -> None:
        """Follow a run directory that was moved or copied, unless its store is in neither place.

        The MLflow run stays that of the original as long as both are there and have the same store.
        """
        recorded = self.tags.get("run_dir", str(run_dir))
        if recorded == str(run_dir):
            return
        uri = moved_uri(self.uri, run_dir, recorded)
        file = sqlite_file(uri)
        if file is not None and uri != self.uri:
            self.uri, self.artifact_root = uri, str(file.parent / ARTIFACTS)
        elif self.run_id is not None and _run_id_of(Path(recorded)) == self.run_id:
            self.run_id = None
        if file is None or file.exists():
            self.tags["run_dir"] = str(run_dir)

    def save(self, run_dir: Path) -> None:
        """Replace the file atomically.

        Raises:
            OSError: it cannot be written.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        with replaced(run_dir / RECORD_NAME) as part:
            part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def update(self, run_dir: Path, **values: Any) -> None:
        """Change some values here and in the file, whose other values another process may have changed.

        Raises:
            OSError: the file cannot be written.
            UserError: it is damaged.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        for key, value in values.items():
            setattr(self, key, value)
        with save_lock(run_dir):
            current = RunRecord.load(run_dir) or self
            for key, value in values.items():
                setattr(current, key, value)
            current.save(run_dir)

    def end_at(self, time_s: float) -> float:
        """Return a time at which the run may have ended: not before its start, though a clock was put back."""
        return max(self.start_time_s, time_s)

    @property
    def has_ended(self) -> bool:
        """True if the run was closed."""
        return self.status in STATUSES


def hold_live(run_dir: Path) -> IO[str] | None:
    """Mark a directory as that of a living process until the file is closed or the process ends, however it ends.

    Returns:
        The open file; None if the file system has no locks.
    """
    file = (run_dir / LIVE_NAME).open("w")
    if lock(file, fcntl.LOCK_SH, wait_s=math.inf):  # nobody but `is_dead` is in the way
        return file
    file.close()
    return None


def is_dead(run_dir: Path) -> bool:
    """Return True if a process held the directory by `hold_live` and is gone; False if that cannot be known."""
    try:
        with (run_dir / LIVE_NAME).open("r+") as file:
            return lock(file) is True
    except OSError:
        return False


@contextlib.contextmanager
def save_lock(run_dir: Path) -> Iterator[None]:
    """Let one process at a time change the record; a process that is stopped keeps nobody for long.

    The lock is that of the directory itself; a file system without such locks has none.
    """
    descriptor = os.open(run_dir, os.O_RDONLY)
    try:
        lock(descriptor, wait_s=SAVE_WAIT_S)
        yield
    finally:
        release(descriptor)


@contextlib.contextmanager
def sender_lock(run_dir: Path, wait_s: float) -> Iterator[bool]:
    """Let one process at a time send what a directory has; yield False if another one still does after `wait_s`."""
    with lock_file(run_dir / SENDER_LOCK_NAME, wait_s) as is_locked:
        yield is_locked is not False


def _run_id_of(run_dir: Path) -> str | None:
    """Return the MLflow run that the record of a directory names; None if there is none that can be read."""
    try:
        values = json.loads((run_dir / RECORD_NAME).read_text(encoding="utf-8"))
        return values.get("run_id") if isinstance(values, dict) else None
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def sweep_lock(sweep_dir: Path) -> Iterator[None]:
    """Let one process at a time find or create the parent run of a sweep."""
    with lock_file(sweep_dir / SWEEP_LOCK_NAME):
        yield
