"""Sending to MLflow what it lacks of earlier runs: `gpt2x sync`, and the end of runs whose process could not."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.runtime.console import stderr
from gpt2x.tracking.mlflow_record import RECORD_NAME, RunRecord, is_dead
from gpt2x.tracking.mlflow_run import lines_of, open_run
from gpt2x.tracking.mlflow_store import first_line, import_mlflow


def sync(run_dir: Path) -> int:
    """Send what `metrics.jsonl` has and MLflow lacks, then the artifacts, the tags and the status.

    A run whose process is gone without having closed it is KILLED. In the directory of a sweep, the runs of all jobs
    below it are sent, then their parent run; if it is open and no job is running, it is KILLED as well.

    Args:
        run_dir: a directory with `mlflow_run.json`, or that of a sweep.

    Returns:
        The number of values sent; a second call sends none.

    Raises:
        UserError: the directory has no tracked run, or MLflow does not answer.
    """
    run_dir = Path(run_dir)
    jobs = job_dirs(run_dir)
    if not jobs and not (run_dir / RECORD_NAME).exists():
        raise UserError(f"{run_dir} has no {RECORD_NAME}; give the directory of a run with tracker=mlflow.")
    import_mlflow()
    sent = sum(sync_one(job_dir) for job_dir in jobs)
    parent = RunRecord.load(run_dir)
    if parent is None:
        return sent
    if jobs and not parent.has_ended:  # a next job, or the end of the sweep, would take this back
        records = [record for job_dir in jobs if (record := RunRecord.load(job_dir))]
        if all(record.has_ended for record in records):
            close(parent, run_dir, "KILLED", max(record.end_time_s for record in records))
    return sent + sync_one(run_dir)


def job_dirs(sweep_dir: Path) -> list[Path]:
    """Return the directories below that of a sweep that have a run of MLflow."""
    return sorted(path.parent for path in Path(sweep_dir).glob(f"*/**/{RECORD_NAME}"))


def sync_one(run_dir: Path) -> int:
    """Do what `sync` does for one run."""
    record = RunRecord.load(run_dir)
    assert record is not None
    lines = lines_of(run_dir)
    if not record.has_ended and is_dead(run_dir):
        close(record, run_dir, "KILLED", max([record.start_time_s, *(time_s for _, time_s, _ in lines)]))
    recorded = record.tags.get("run_dir")
    if recorded not in (None, str(run_dir.absolute())):  # `load` follows a run whose store it sees
        raise UserError(
            f"{run_dir} was moved from {recorded}, and its MLflow store {record.uri} does not exist. Copy the store "
            f'there, or write its address ("uri") into {run_dir / RECORD_NAME}.'
        )
    try:
        run = open_run(record, run_dir, stderr.warn, is_live=False)
        missing = run.missing(lines)
        run.log_lines(missing)
        for name in record.artifacts:
            if (run_dir / name).exists():
                run.log_artifact(run_dir / name)
        if record.has_ended:
            run.terminate()
    except Exception as error:
        raise UserError(f"MLflow ({record.uri}) does not accept the run: {first_line(error)}") from error
    return sum(len(values) for _, _, values in missing)


def close(record: RunRecord, run_dir: Path, status: str, end_time_s: float) -> None:
    """Note that a run has ended, with unix seconds; nothing is sent."""
    record.status, record.end_time_s = status, end_time_s
    record.save(run_dir)


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
    close(record, run_dir, status, time.time())
    command = [sys.executable, "-m", "gpt2x", "sync", str(run_dir)]
    try:  # in a process, because a process can be ended
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
        failure = done.stderr.strip().removeprefix("error: ") if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no answer in {wait_s:g} s"
    if failure is not None:
        stderr.warn(f"MLflow may show the run as RUNNING ({failure}); later: gpt2x sync {run_dir}")
