"""Sending to MLflow what it lacks of earlier runs: `gpt2x sync`, and the end of runs whose process could not."""

from __future__ import annotations

import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.runtime.console import stderr
from gpt2x.runtime.owner import owning
from gpt2x.tracking import jsonl
from gpt2x.tracking.mlflow_record import RECORD_NAME, RunRecord, is_dead, sender_lock
from gpt2x.tracking.mlflow_run import MlflowRun
from gpt2x.tracking.mlflow_sender import GoneError, Sender
from gpt2x.tracking.mlflow_store import first_line, import_mlflow, shown

SENDER_WAIT_S = 20.0  # for the mirror of a run that has just ended
MAX_REASONS = 3  # in a message


def sync(directory: Path) -> int:
    """Send what `metrics.jsonl` has and MLflow lacks, then the artifacts, the tags and the status.

    A run whose process is gone without having closed it is KILLED. In a directory of runs, such as that of a sweep or
    `paths.outputs`, all runs below it are sent. The parent run of a sweep that is open, and of which no job is running,
    is KILLED as well.

    Args:
        directory: a directory with `mlflow_run.json`, or one above such directories.

    Returns:
        The number of values sent; a second call sends none.

    Raises:
        UserError: the directory has no tracked run, or a run could not be sent; the others have been.
    """
    directory = Path(directory)
    run_dirs = tracked_dirs(directory)
    if not run_dirs:
        raise UserError(f"{directory} has no {RECORD_NAME}; give the directory of a run with tracker=mlflow.")
    import_mlflow()
    sent, failures = 0, []
    for run_dir in run_dirs:
        try:
            sent += sync_one(run_dir)
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("\n".join(failures))
    return sent


def tracked_dirs(directory: Path) -> list[Path]:
    """Return the directories at and below one that have a run of MLflow, the deepest first: jobs before their sweep."""
    paths = {path.parent for path in Path(directory).rglob(RECORD_NAME)}
    return sorted(paths, key=lambda path: (-len(path.parts), path))


def job_dirs(sweep_dir: Path) -> list[Path]:
    """Return the directories below that of a sweep that have a run of MLflow."""
    return [path for path in tracked_dirs(sweep_dir) if path != Path(sweep_dir)]


def sync_one(run_dir: Path) -> int:
    """Do what `sync` does for one run, as the owner of its directory.

    Raises:
        OwnedError: it is alive.
        UserError: it could not be sent, or another process sends it.
    """
    with owning(run_dir), sender_lock(run_dir, SENDER_WAIT_S) as is_free:
        if not is_free:
            raise UserError(f"{run_dir}: the process that sends its values has not ended yet; try again when it has.")
        return _sync_locked(run_dir)


def _sync_locked(run_dir: Path) -> int:
    record = RunRecord.load(run_dir)
    assert record is not None
    if not record.has_ended and (_has_ended_jobs(run_dir) if record.is_sweep else is_dead(run_dir)):
        close_killed(record, run_dir)
    recorded = record.tags.get("run_dir")
    if recorded not in (None, str(run_dir.absolute())):  # `load` follows a run whose store it sees
        raise UserError(
            f"{run_dir} was moved from {recorded}, and its MLflow store {shown(record.uri)} does not exist. Copy the "
            f'store there, or write its address ("uri") into {run_dir / RECORD_NAME}.'
        )
    sender = Sender(run_dir, stderr.warn, is_live=False)
    try:
        try:
            sender.complete()
        except GoneError:  # deleted at this moment
            sender.complete()
    except Exception as error:
        raise UserError(f"MLflow ({shown(record.uri)}) does not accept the run: {first_line(error)}") from error
    if sender.problems:
        raise UserError(
            f"MLflow ({shown(record.uri)}) does not take a part of {run_dir}: {reasons(sender.problems)}. The rest has "
            f"arrived. Again: gpt2x sync {shlex.quote(str(run_dir))}"
        )
    return sender.sent


def reasons(problems: dict[str, str]) -> str:
    """Return what MLflow did not take, and why, as long as a message can be."""
    texts = [f"{item} ({reason})" for item, reason in problems.items()]
    more = f", and {len(texts) - MAX_REASONS} more" if len(texts) > MAX_REASONS else ""
    return ", ".join(texts[:MAX_REASONS]) + more


def _has_ended_jobs(sweep_dir: Path) -> bool:
    """Return True if a sweep has jobs and none is running; a next job, or its end, would take this back."""
    records = [record for job_dir in job_dirs(sweep_dir) if (record := RunRecord.load(job_dir))]
    return bool(records) and all(record.has_ended for record in records)


def close_killed(record: RunRecord, run_dir: Path) -> None:
    """Note that a run was killed, at the time of its last metrics or, of a sweep, of its last job; nothing is sent."""
    if record.is_sweep:
        ends = [job.end_time_s for job_dir in job_dirs(run_dir) if (job := RunRecord.load(job_dir))]
    else:
        ends = [time_s for time_s in [jsonl.last_time(run_dir / "metrics.jsonl")] if time_s is not None]
    record.update(run_dir, status="KILLED", end_time_s=record.end_at(max(ends, default=0.0)))


def end_dead_runs(run: MlflowRun) -> None:
    """Close and send the runs of this machine that MLflow shows as running although their process is gone.

    Args:
        run: a run of the store; itself left out.

    Raises:
        Exception: whatever MLflow raises.
    """
    for run_dir, run_id in run.other_running(socket.gethostname()):
        record = RunRecord.load(run_dir) if run_dir.is_dir() else None
        if record is not None and record.run_id == run_id and not record.is_sweep and is_dead(run_dir):
            with sender_lock(run_dir, 0.0) as is_free:
                if is_free:
                    _sync_locked(run_dir)


def end_abandoned(run_dir: Path, status: str, wait_s: float = 8.0) -> None:
    """Close the run of a process that could not, and send what is missing; do nothing if the run is closed.

    Args:
        run_dir: the run directory.
        status: FAILED or KILLED.
        wait_s: seconds that MLflow may take; after that a warning names the command that sends the rest.
    """
    record = RunRecord.load(run_dir)
    if record is None or record.has_ended:
        return
    record.update(run_dir, status=status, end_time_s=record.end_at(time.time()))
    _send(run_dir, wait_s)


def end_finished(run_dir: Path, files: Iterable[str], wait_s: float = 60.0) -> None:
    """Send what MLflow lacks of a run that has done its steps; if it was killed after them, close it as FINISHED.

    Its end is then the time of its last metrics.

    Args:
        run_dir: the run directory.
        files: names of files in it that are sent, if they exist.
        wait_s: as `end_abandoned`.
    """
    record = RunRecord.load(run_dir)
    if record is None:
        return
    if not record.has_ended or record.status == "KILLED":
        close_killed(record, run_dir)
        names = [name for name in files if (run_dir / name).is_file() and name not in record.artifacts]
        record.update(run_dir, status="FINISHED", artifacts=[*record.artifacts, *names])
    _send(run_dir, wait_s)


def _send(run_dir: Path, wait_s: float) -> None:
    """Send what MLflow lacks; a warning names the command that does it later."""
    command = [sys.executable, "-m", "gpt2x", "sync", str(run_dir)]
    try:  # in a process, because a process can be ended
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
        failure = done.stderr.strip().removeprefix("error: ") if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no answer in {wait_s:g} s"
    if failure is not None:
        later = f"gpt2x sync {shlex.quote(str(run_dir))}"
        stderr.warn(f"MLflow may show the run as RUNNING ({failure}); later: {later}")
