"""What Hydra calls for each composed configuration: the only run of a command, or a job of a sweep.

Launchers such as joblib and submitit pickle `HydraJob` and call it in processes of their own. Therefore a job hands
over nothing in memory but its objective, which sweepers such as Optuna's read; the rest is in `job.json`.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gpt2x.commands.configuration import typed_config
from gpt2x.commands.entry import close_tracking
from gpt2x.commands.sweep_start import as_typed
from gpt2x.config import CommonConfig
from gpt2x.errors import NothingLeftError, RunError, UserError
from gpt2x.runtime import jobs, launch, scheduler
from gpt2x.runtime.console import console, show_error, stderr
from gpt2x.runtime.files import remove_empty
from gpt2x.runtime.jobs import Job, Sweep, read_job, read_sweep, write_job
from gpt2x.runtime.owner import OwnedError, is_record, owning
from gpt2x.runtime.processes import last_error
from gpt2x.runtime.role import Role
from gpt2x.runtime.run_log import RUN_LOG
from gpt2x.runtime.shares import share_of_cores

Run = Callable[[str, Any, Role, Path], None]  # name of the entry, configuration, role of the process, run directory
ATTEMPTS = "attempts"  # in a job's run directory: what earlier attempts left that cannot be continued
OWNER_WAIT_S = 20.0  # for the processes of a sweep that was killed to end


@dataclass
class HydraJob:
    """Runs what Hydra has composed.

    Attributes:
        name: of the entry.
        run: what runs a configuration.
        role: of this process.
        command: as it was typed.
        has_started: True once Hydra has called; what it raised before is a mistake in the command line.
        failure: of the only run, or the first of a sweep without records; None if there was none.
    """

    name: str
    run: Run
    role: Role
    command: str
    has_started: bool = False
    failure: RunError | None = None

    def __call__(self, values: DictConfig) -> float | None:
        """Run one configuration.

        Returns:
            The objective's best value of a job; None if it failed or has none. Optuna's sweeper counts None as failed.
        """
        self.has_started = True
        os.environ[jobs.COMMAND_VARIABLE] = self.command
        settings = HydraConfig.get()
        run_dir = Path(settings.runtime.output_dir)
        if settings.mode != RunMode.MULTIRUN:
            self.failure = needs_multirun(settings, values)
            if self.failure:
                remove_empty(run_dir)
                return None
            is_named = any(each.startswith("hydra.run.dir=") for each in as_typed(settings.overrides.hydra))
            role = replace(self.role, has_named_run_dir=is_named)
            self.failure = run_guarded(self.name, self.run, role, values, run_dir)
            return None
        role = replace(self.role, is_sweeping=True, has_named_run_dir=True)
        if "joblib" in str(settings.launcher.get("_target_", "")):
            end_with_parent()
        sweep_dir = Path(os.path.abspath(settings.sweep.dir))
        sweep = read_sweep(sweep_dir)
        if sweep is None:  # plans and `prepare` leave no records
            failure = run_guarded(self.name, self.run, role, values, run_dir, shows_mistakes=True)
            if failure and "basic" not in str(settings.launcher.get("_target_", "")):
                raise failure  # in a launcher's process, of which Hydra tells the user
            self.failure = self.failure or (RunError(status=failure.status) if failure else None)
            return None
        job = job_of(settings, sweep, sweep_dir, values)
        try:
            return run_job(self, role, values, job, sweep)
        except Exception as error:  # the other jobs still run
            stderr.plain(traceback.format_exc())
            write_job(replace(job, status=jobs.FAILED, exit_status=1, message=f"{type(error).__name__}: {error}"))
            return None


def needs_multirun(settings: Any, values: DictConfig) -> RunError | None:
    """Return the mistake of a single run that asks for what only a sweep has."""
    search = settings.runtime.choices.get("hparams_search")
    pruner = OmegaConf.select(values, "sweep.pruner", default=None)
    if not (search or pruner):
        return None
    text = f"hparams_search={search}" if search else f"sweep.pruner={pruner}"
    return RunError(f"{text} is for a sweep, which -m starts; add -m, or leave it out.", status=2)


def job_of(settings: Any, sweep: Sweep, sweep_dir: Path, values: DictConfig) -> Job:
    """Return the job that Hydra has composed, not yet begun."""
    overrides = as_typed(settings.overrides.task)
    return Job(
        number=settings.job.num,
        overrides=overrides,
        varied=[each for each in overrides if each.partition("=")[0].lstrip("+") in sweep.varied],
        sweep_dir=str(sweep_dir),
        run_dir=os.path.abspath(settings.runtime.output_dir),
        objective=sweep.objective,
        choices={str(key): str(value) for key, value in settings.runtime.choices.items()},
        load=str(OmegaConf.select(values, "load", default=None) or ""),
    )


def run_job(this: HydraJob, role: Role, values: DictConfig, job: Job, sweep: Sweep) -> float | None:
    """Run a job, unless it has succeeded before; write down how it ended, and return its objective."""
    if job.number == 0:
        at_a_time = f", {sweep.parallel_jobs} at a time" if sweep.parallel_jobs > 1 else ""
        console.notice(f"sweep of {sweep.num_jobs} jobs{at_a_time}: {job.sweep_dir}")
    try:
        with owning(job.path, OWNER_WAIT_S):
            return run_owned_job(this, role, values, job, sweep)
    except OwnedError as error:
        show_error(f"job {job.number} ({job.name}) is being run: {error}")
        return None


def run_owned_job(this: HydraJob, role: Role, values: DictConfig, job: Job, sweep: Sweep) -> float | None:
    """Do what `run_job` does, as the owner of the job's directory."""
    earlier = read_job(job.path)
    if earlier and earlier.number != job.number:
        show_error(
            f"job {job.number} ({job.name}): {job.path} is the directory of job {earlier.number}; "
            "give hydra.sweep.subdir a value that differs between jobs, such as '${hydra.job.num}'."
        )
        return None
    if earlier and same_overrides(earlier, job):
        if earlier.has_succeeded:
            console.notice(f"job {job.number} ({job.name}) was {earlier.status} before: {result(earlier)}")
            return earlier.value
        job = replace(job, seconds=earlier.seconds)
    continues = prepare_directory(job, earlier)
    write_job(job)
    console.notice(f"job {job.number} (of {sweep.num_jobs}): {job.name}{', continues' if continues else ''}")
    started = time.monotonic()
    ended = replace(job, status=jobs.KILLED)
    try:
        with share_of_cores(Path(job.sweep_dir), sweep.parallel_jobs, f"{job.number} | "):
            started = time.monotonic()
            failure = run_guarded(
                this.name, this.run, role, with_resume(values, continues), job.path, job, shows_mistakes=True
            )
        ended = replace(job, status=status_of(job, failure), exit_status=failure.status if failure else 0)
        ended = replace(ended, message=str(failure) if failure else "")
    finally:
        seconds = job.seconds + time.monotonic() - started
        ended = with_objective(replace(ended, seconds=round(seconds, 3)), sweep)
        write_job(ended)
    return ended.value if ended.has_succeeded else None


def run_guarded(
    name: str, run: Run, role: Role, values: Any, run_dir: Path, job: Job | None = None, shows_mistakes: bool = False
) -> RunError | None:
    """Run one composed configuration; return its failure.

    A failure is not passed to Hydra, which would print a line about it and end the sweep.

    Args:
        name: the entry.
        run: what runs it.
        role: of this process.
        values: the composed configuration.
        run_dir: the directory that Hydra made; it is removed if nothing was written.
        job: in a sweep.
        shows_mistakes: print a mistake of the user here, since nobody else will.
    """
    label = f"job {job.number} ({job.name}): " if job else ""
    try:
        config = typed_config(name, values, HydraConfig.get().overrides.task)
        if isinstance(config, CommonConfig):  # `prepare` has no processes
            launch.require_worker_num(config, role)
        if role.is_scheduler:
            scheduler.end_with_siblings()
            scheduler.serve()
        else:
            run(name, config, role, run_dir)
    except NothingLeftError as error:
        if config.resume != "auto":
            return RunError(str(error), status=2)
        console.notice(str(error))
    except UserError as error:
        if shows_mistakes:
            show_error(f"{label}{error}")
        return RunError(str(error), status=2)
    except RunError as error:
        return RunError(reason(run_dir) if job and not str(error) else str(error), error.status)
    finally:
        remove_empty(run_dir)
    return None


@functools.cache
def end_with_parent() -> None:
    """End this process of a launcher as SIGTERM does, when the process that started it is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def same_overrides(earlier: Job, job: Job) -> bool:
    """Return whether two jobs are the same one; how it resumes is no part of it."""
    first, second = ([each for each in one.overrides if not is_resume(each)] for one in (earlier, job))
    return first == second


def is_resume(override: str) -> bool:
    """Return whether an override says how a run resumes."""
    return override.partition("=")[0].lstrip("+") == "resume"


def prepare_directory(job: Job, earlier: Job | None) -> bool:
    """Return whether an earlier attempt left a checkpoint to continue from; if not, make the run directory empty.

    What cannot be continued is moved to `attempts/N`, so nothing is lost.
    """
    from gpt2x import checkpoint

    if earlier and same_overrides(earlier, job) and checkpoint.step_directories(job.path):
        return True
    left = [path for path in job.path.iterdir() if path.name != ATTEMPTS and not is_record(path)]
    if left:
        close_tracking(job.path, "KILLED")
        numbers = [int(path.name) for path in (job.path / ATTEMPTS).glob("*") if path.name.isdigit()]
        target = job.path / ATTEMPTS / str(max(numbers, default=0) + 1)
        target.mkdir(parents=True)
        for path in left:
            path.rename(target / path.name)
    return False


def reason(run_dir: Path) -> str:
    """Return the error that ended a job's processes, as its log has it."""
    log = run_dir / RUN_LOG
    lines = last_error(log) if log.is_file() else []
    return lines[0].strip().removeprefix("error: ") if lines else f"its processes failed, see {run_dir}"


def with_resume(values: DictConfig, continues: bool) -> DictConfig:
    """Return the configuration that continues a job in its own directory, or begins it."""
    if "resume" not in values:
        return values
    values = values.copy()
    values.resume = "auto" if continues else None
    return values


def status_of(job: Job, failure: RunError | None) -> str:
    """Return how a job ended that was not killed; the training itself writes down that it was pruned."""
    if failure:
        return jobs.FAILED
    now = read_job(job.path)
    return jobs.PRUNED if now and now.status == jobs.PRUNED else jobs.FINISHED


def with_objective(job: Job, sweep: Sweep) -> Job:
    """Return the job with its objective's best value, as far as it came."""
    from gpt2x.tracking import jsonl
    from gpt2x.tracking.best import best_value

    path = job.path / "metrics.jsonl"
    if not sweep.objective or not sweep.direction or not path.is_file():
        return job
    best = best_value(jsonl.read(path), sweep.objective, sweep.direction)
    return replace(job, value=best[0], step=best[1]) if best else job


def result(job: Job) -> str:
    """Return a job's result in words."""
    if job.value is None:
        return "no value" if job.objective else "done"
    return f"{job.objective} {job.value:.6g} at step {job.step}"
