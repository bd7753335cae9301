"""What is written down about a Hydra multirun (a sweep), its jobs, and the command that was typed.

A job runs in a process of its own, perhaps on another machine, so it cannot hand anything to the sweep through memory.
It writes `job.json` into its run directory; the sweep, its tracker and reports read it there. `sweep.json` is written
into the directory of the sweep before its first job.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gpt2x.runtime.files import write_durably

SWEEP = "sweep.json"  # in the directory of a sweep
JOB = "job.json"  # in the run directory of a job
COMMAND = "command.txt"  # in every run directory, and in that of a sweep
COMMAND_VARIABLE = "GPT2X_COMMAND"  # in processes that a command starts: the command as it was typed

RUNNING, FINISHED, PRUNED, FAILED, KILLED = "running", "finished", "pruned", "failed", "killed"


Record = TypeVar("Record", "Sweep", "Job")


@dataclass(frozen=True)
class Sweep:
    """A sweep, as it was when it was started.

    Attributes:
        command: as it was typed.
        overrides: what the command line gives to jobs, sorted, without `resume`: two sweeps with the same are one.
        varied: keys and groups in which jobs differ.
        num_jobs: jobs in all.
        parallel_jobs: jobs that run at a time on one machine.
        objective: the metric that is compared, "" if there is none.
        direction: its better value, `lower` or `higher`; "" without an objective.
    """

    command: str
    overrides: list[str]
    varied: list[str]
    num_jobs: int
    parallel_jobs: int = 1
    objective: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Job:
    """A job of a sweep.

    Attributes:
        number: from 0, as Hydra counts.
        overrides: what the command line gave to this job, `KEY=VALUE` each, those that all jobs share included.
        varied: the part of `overrides` in which jobs of the sweep can differ; it names the job.
        sweep_dir: absolute directory of the sweep.
        run_dir: absolute directory of the job.
        status: `running`, `finished`, `pruned`, `failed` or `killed`.
        message: why it failed, else "".
        exit_status: of a failed job: 2 after a user's mistake, else 1.
        objective: the metric that the sweep compares, such as `val/loss`; "" if there is none.
        value: the objective's best value; None if there is none, or it is not finite.
        step: optimizer steps done at `value`.
        seconds: of all attempts together; that of an attempt which was killed outright is not known.
        choices: the option of each config group.
        load: the configuration's `load`, "" if it is null.
    """

    number: int
    overrides: list[str]
    varied: list[str]
    sweep_dir: str
    run_dir: str
    status: str = RUNNING
    message: str = ""
    exit_status: int = 0
    objective: str = ""
    value: float | None = None
    step: int | None = None
    seconds: float = 0.0
    choices: dict[str, str] = field(default_factory=dict)
    load: str = ""

    @property
    def name(self) -> str:
        """What the job is called: what it varies, or its number."""
        return " ".join(self.varied) or f"job {self.number}"

    @property
    def path(self) -> Path:
        """The job's run directory."""
        return Path(self.run_dir)

    @property
    def has_succeeded(self) -> bool:
        """True if the job need not run again."""
        return self.status in (FINISHED, PRUNED)


def read_job(run_dir: Path) -> Job | None:
    """Return what `job.json` says; None in the directory of a run that is no job, or if the file is damaged.

    The directory may have been moved, so `run_dir` is where the file is now.
    """
    job = _read(run_dir / JOB, Job)
    return replace(job, run_dir=os.path.abspath(run_dir)) if job else None


def write_job(job: Job) -> None:
    """Write `job.json` into the job's run directory, completely or not at all."""
    _write(job.path / JOB, job)


def read_jobs(sweep_dir: Path) -> list[Job]:
    """Return the jobs of a sweep that have begun, by their number; `hydra.sweep.subdir` says how deep they are."""
    jobs = []
    for folder, folders, files in os.walk(sweep_dir):
        if JOB in files:
            job = read_job(Path(folder))
            if job is not None:  # else the file is damaged
                jobs.append(replace(job, sweep_dir=os.path.abspath(sweep_dir)))
            folders.clear()  # earlier attempts are below
        folders[:] = [name for name in folders if not name.startswith(".")]
    return sorted(jobs, key=lambda job: job.number)


def read_sweep(sweep_dir: Path) -> Sweep | None:
    """Return what `sweep.json` says; None if the directory is that of no sweep, or the file is damaged."""
    return _read(sweep_dir / SWEEP, Sweep)


def write_sweep(sweep_dir: Path, sweep: Sweep) -> None:
    """Write `sweep.json`, completely or not at all."""
    _write(sweep_dir / SWEEP, sweep)


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        names = {each.name for each in fields(kind)}
        return kind(**{key: value for key, value in values.items() if key in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write(path: Path, record: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, (json.dumps(asdict(record), indent=1) + "\n").encode())


def note_command() -> None:
    """Hand the command line of this process to those that it starts, on any machine; call it where it was typed."""
    os.environ.pop(COMMAND_VARIABLE, None)  # of a command that started this one
    os.environ[COMMAND_VARIABLE] = typed_command()


def typed_command() -> str:
    """Return the command line as it can be typed again, quoted for a POSIX shell; in a worker, that of its launcher."""
    if COMMAND_VARIABLE in os.environ:
        return os.environ[COMMAND_VARIABLE]
    program, *arguments = sys.orig_argv
    if arguments and Path(arguments[0]).name == "gpt2x":  # the console script is run by the interpreter
        program, *arguments = arguments
    return shlex.join([Path(program).name, *arguments])


def write_command(run_dir: Path, command: str) -> None:
    """Append a line to `command.txt`: the command that started the run, then those that resumed it."""
    path = run_dir / COMMAND
    run_dir.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    write_durably(path, before + command.encode("utf-8", "surrogateescape") + b"\n")


def read_command(run_dir: Path) -> str | None:
    """Return the newest command of `command.txt`, whose arguments may have line breaks; None if there is none."""
    try:
        lines = (run_dir / COMMAND).read_bytes().decode("utf-8", "surrogateescape").split("\n")
    except OSError:
        return None
    newest, begun = None, ""
    for line in lines:
        begun = f"{begun}\n{line}" if begun else line
        if begun and is_complete(begun):
            newest, begun = begun, ""
    return newest


def is_complete(command: str) -> bool:
    """Return whether a shell would take a text as a whole command: all its quotes are closed."""
    try:
        return bool(shlex.split(command))
    except ValueError:
        return False
