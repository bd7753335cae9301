"""The parent run of a multirun: its jobs are below it, the best value and the files of the sweep are in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2x.config import TrackerConfig
from gpt2x.runtime.jobs import read_command, read_jobs, typed_command
from gpt2x.tracking.description import sweep_name
from gpt2x.tracking.jsonl import MetricsLog
from gpt2x.tracking.mlflow_record import RunRecord, is_dead
from gpt2x.tracking.mlflow_sync import end_abandoned, job_dirs
from gpt2x.tracking.registry import create_tracker
from gpt2x.tracking.tracker import RunInfo


def end_sweep_run(
    sweep_dir: Path,
    config: TrackerConfig,
    outputs: Path,
    *,
    experiment: str,
    status: str = "FINISHED",
    metrics: Mapping[str, float] | None = None,
    step: int = 0,
    artifacts: Iterable[Path] = (),
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """End the parent run of a multirun, which its first job has created, or create it now; print its page.

    It waits for MLflow as long as the end of a run does, and warns with the command that sends it later. Jobs whose
    process is gone without having closed their run are KILLED. A sweep that was started again ends the same run.

    Args:
        sweep_dir: directory of the multirun; what is tracked is written to its `metrics.jsonl`.
        config: the group `tracker` of a job.
        outputs: `paths.outputs`.
        experiment: the group of runs if `tracker.experiment` is null, as of the jobs.
        status: FINISHED, FAILED or KILLED.
        metrics: of the sweep, such as `best/val/loss`, `best/step` and `jobs/failed`.
        step: at which MLflow shows the metrics.
        artifacts: files of the sweep, such as `sweep.csv`.
        params: of the sweep, nested; MLflow does not change them later.
        tags: of the sweep.

    Raises:
        UserError: the tracker's settings cannot be used, or `mlflow_run.json` of the sweep is damaged.
        ValueError: an unknown status.
    """
    settings = replace(config, run_name=None, system_metrics=False)
    for job_dir in job_dirs(sweep_dir):
        record = RunRecord.load(job_dir)
        if record is not None and not record.has_ended and is_dead(job_dir):
            end_abandoned(job_dir, "KILLED")
    tracker = create_tracker(settings, outputs)
    origin = {"command": read_command(sweep_dir) or typed_command(), "run_dir": str(sweep_dir.absolute())}
    tracker.start(
        RunInfo(
            experiment=settings.experiment or experiment,
            run_name=sweep_name(sweep_dir, next(iter(read_jobs(sweep_dir)), None), config.run_name),
            run_dir=sweep_dir,
            params=params or {},
            tags=origin | dict(tags or {}),
            is_sweep=True,
        )
    )
    if metrics:
        tracker.log_metrics(*MetricsLog(sweep_dir / "metrics.jsonl").append(step, metrics))
    for path in artifacts:
        tracker.log_artifact(path)
    tracker.finish(status)
