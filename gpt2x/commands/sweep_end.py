"""The end of a sweep: one table of its jobs, `sweep.csv`, a picture, the best job, and what to type next."""

from __future__ import annotations

import csv
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from gpt2x.commands.sweep_start import remove_places, remove_unused
from gpt2x.config.messages import quoted
from gpt2x.errors import RunError
from gpt2x.runtime import jobs
from gpt2x.runtime.console import console, format_duration
from gpt2x.runtime.files import replaced
from gpt2x.runtime.jobs import Job, Sweep, read_jobs, read_sweep, write_job
from gpt2x.runtime.owner import OwnedError, owning

PLAIN_PATH = re.compile(r"[\w./:+-]+")  # needs no quotes in Hydra's grammar
CSV, PICTURE = "sweep.csv", "sweep.png"  # in the directory of a sweep


def end_sweep(name: str, sweep_dir: Path, error: BaseException | None = None) -> bool:
    """Show what the jobs of a sweep reached, and write it into its directory.

    Args:
        name: the command.
        sweep_dir: directory of the sweep.
        error: what ended the sweep before its last job, if anything did.

    Returns:
        True if the error is only that all jobs failed, which has been shown.

    Raises:
        RunError: jobs failed; each has said why.
    """
    sweep = read_sweep(sweep_dir)
    assert sweep is not None
    ended_jobs = [closed(job) for job in read_jobs(sweep_dir)]
    remove_places(sweep_dir)
    if not ended_jobs:
        remove_unused(sweep_dir)
        return False
    if sweep.objective:
        report(sweep_dir, sweep, ended_jobs)
        if error is None and not any(job.value is not None for job in ended_jobs):
            console.warn(f"no job has a value of {sweep.objective}")
        draw(sweep_dir)
        track(sweep_dir, sweep, ended_jobs, is_interrupted=isinstance(error, KeyboardInterrupt))
    elif name == "evaluate" and error is None:
        from gpt2x.evaluate.comparison import compare

        compare(sweep_dir, ended_jobs)
    failed = [job for job in ended_jobs if job.status == jobs.FAILED]
    running = [job.number for job in ended_jobs if job.status == jobs.RUNNING]
    if isinstance(error, ValueError) and not any(job.value is not None for job in ended_jobs) and not failed:
        raise RunError(f"no job has a value of {sweep.objective}, so there is no best one.") from None
    if error is not None and not (failed and len(failed) == len(ended_jobs) and isinstance(error, Exception)):
        return False
    if failed:
        raise RunError(failures(failed, len(ended_jobs), sweep_dir, sweep), min(job.exit_status for job in failed))
    missing = sweep.num_jobs - len(ended_jobs)
    if missing > 0:
        raise RunError(f"{missing} of {sweep.num_jobs} jobs left no record; to run them: {again(sweep, sweep_dir)}")
    if running:
        raise RunError(f"other processes still run jobs {', '.join(map(str, running))} of this sweep.")
    return True


def closed(job: Job) -> Job:
    """Return the job; one whose process ended without a word is marked as killed."""
    if job.status != jobs.RUNNING:
        return job
    with suppress(OwnedError), owning(job.path):
        job = replace(job, status=jobs.KILLED)
        write_job(job)
    return job


def report(sweep_dir: Path, sweep: Sweep, ended_jobs: Sequence[Job]) -> None:
    """Print the table and the best job; write `sweep.csv` and the picture."""
    from gpt2x.reports.naming import rounded, short_keys

    ranked = ranking(ended_jobs, sweep)
    keys = list(dict.fromkeys(key for job in ranked for key in varied(job)))
    columns = ["job", *short_keys(keys).values(), sweep.objective, "step", "time", "status"]
    values = {key: rounded([varied(job).get(key, "") for job in ranked]) for key in keys}
    rows = [
        [
            job.number,
            *(values[key][index] for key in keys),
            "" if job.value is None else f"{job.value:.6g}",
            "" if job.step is None else job.step,
            format_duration(job.seconds),
            job.status,
        ]
        for index, job in enumerate(ranked)
    ]
    console.table(f"{sweep_dir.name}, by the best {sweep.objective}", columns, rows)
    try:
        write_csv(sweep_dir / CSV, sweep, ranked, keys)
    except OSError as error:
        console.warn(f"{sweep_dir / CSV} cannot be written: {error.strerror}")
    best = best_job(ranked)
    if best:
        console.notice(f"best: job {best.number} ({best.name}), {sweep.objective} {best.value:.6g} at step {best.step}")
        console.notice(f"  {shown(best.path)}")
    console.notice(f"sweep: {shown(sweep_dir)}, with {CSV}")
    open_jobs = sweep.num_jobs - sum(job.has_succeeded for job in ended_jobs)
    if open_jobs and not any(job.status == jobs.FAILED for job in ended_jobs):
        console.notice(f"{open_jobs} of {sweep.num_jobs} jobs are not done; to continue: {again(sweep, sweep_dir)}")


def draw(sweep_dir: Path) -> None:
    """Draw `sweep.png`; a picture that cannot be drawn is no failure of the sweep."""
    from gpt2x.reports.trial_pictures import sweep_picture

    try:
        if sweep_picture(sweep_dir, sweep_dir / PICTURE):
            console.notice(f"picture: {shown(sweep_dir / PICTURE)}")
    except (OSError, ValueError) as error:
        console.warn(f"{PICTURE} was not drawn: {error}")


def track(sweep_dir: Path, sweep: Sweep, ended_jobs: Sequence[Job], *, is_interrupted: bool) -> None:
    """End the tracker's run of the sweep, with the best value and the number of jobs by status."""
    from gpt2x.config.files import load_config
    from gpt2x.tracking.sweep_run import end_sweep_run

    started = [job for job in ranking(ended_jobs, sweep) if (job.path / "config.yaml").is_file()]
    if not started:
        return
    config = load_config("train", started[0].path / "config.yaml")
    counts = Counter(job.status for job in ended_jobs)
    metrics = {f"jobs/{status}": float(number) for status, number in counts.items()}
    best = best_job(started)
    if best and best.value is not None:
        metrics |= {f"best/{sweep.objective}": best.value, "best/job": float(best.number)}
    end_sweep_run(
        sweep_dir,
        config.tracker,
        Path(config.paths.outputs).expanduser(),
        experiment=config.task.name,
        status="KILLED" if is_interrupted else "FAILED" if counts[jobs.FAILED] else "FINISHED",
        metrics=metrics,
        step=(best.step if best else None) or 0,
        artifacts=[path for name in (CSV, PICTURE) if (path := sweep_dir / name).is_file()],
        params={"sweep": {"overrides": sweep.overrides, "objective": sweep.objective}},
    )


def ranking(ended_jobs: Sequence[Job], sweep: Sweep) -> list[Job]:
    """Return the jobs, best objective first; those without one last, by number."""
    sign = -1 if sweep.direction == "higher" else 1
    return sorted(ended_jobs, key=lambda job: (job.value is None, sign * (job.value or 0.0), job.number))


def best_job(ranked: Sequence[Job]) -> Job | None:
    """Return the best job that has succeeded and has a value, or None."""
    return next((job for job in ranked if job.value is not None and job.has_succeeded), None)


def varied(job: Job) -> dict[str, str]:
    """Return what the job varies, by key."""
    pairs = (each.partition("=") for each in job.varied)
    return {key.lstrip("+"): value for key, _, value in pairs}


def write_csv(path: Path, sweep: Sweep, ranked: Sequence[Job], keys: Sequence[str]) -> None:
    """Write the table with whole numbers, and the run directories."""
    with replaced(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["job", *keys, sweep.objective, "step", "seconds", "status", "message", "run_dir"])
        for job in ranked:
            value = "" if job.value is None else repr(job.value)
            numbers = [value, "" if job.step is None else job.step, job.seconds]
            cells = [varied(job).get(key, "") for key in keys]
            writer.writerow([job.number, *cells, *numbers, job.status, job.message, job.run_dir])


def failures(failed: Sequence[Job], count: int, sweep_dir: Path, sweep: Sweep) -> str:
    """Return which jobs failed and why, each reason once, and what runs them again."""
    reasons: dict[str, list[Job]] = {}
    for job in failed:
        reasons.setdefault(job.message, []).append(job)
    lines = [
        f"  job {', '.join(f'{job.number} ({job.name})' for job in jobs_of_reason)}: {reason}"
        for reason, jobs_of_reason in reasons.items()
    ]
    head = f"{len(failed)} of {count} jobs failed{'; the others are done' * (len(failed) < count)}:"
    return "\n".join([head, *lines, f"  after a correction, to run only these: {again(sweep, sweep_dir)}"])


def again(sweep: Sweep, sweep_dir: Path) -> str:
    """Return the command that continues a sweep; jobs that are done are left out."""
    words = [word for word in shlex.split(sweep.command) if not word.startswith("hydra.sweep.dir=")]
    text, key = str(sweep_dir), "hydra.sweep.dir"
    return shlex.join([*words, f"{key}={text}" if PLAIN_PATH.fullmatch(text) else quoted(key, text)])


def shown(path: Path) -> str:
    """Return a path relative to the working directory, if it is in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
