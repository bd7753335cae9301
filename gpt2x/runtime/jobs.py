"""What is written down about a run as a job of a Hydra multirun, and about the command that was typed.

A job runs in a process of its own, perhaps on another machine, so it cannot hand anything to the multirun through
memory. It writes `job.json` into its run directory; the multirun, its tracker and reports read it there.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

JOB = "job.json"  # in the run directory of a job
COMMAND = "command.txt"  # in every run directory, and in that of a sweep
COMMAND_VARIABLE = "GPT2X_COMMAND"  # in processes that a command starts: the command as it was typed

RUNNING, FINISHED, PRUNED, FAILED, KILLED = "running", "finished", "pruned", "failed", "killed"


@dataclass(frozen=True)
class Job:
    """A job of a multirun.

    Attributes:
        number: from 0, as Hydra counts.
        overrides: what the command line gave to this job, `KEY=VALUE` each, those that all jobs share included.
        varied: the part of `overrides` in which jobs of the multirun can differ; it names the job.
        sweep_dir: absolute directory of the multirun.
        status: `running`, `finished`, `pruned`, `failed` or `killed`.
        message: why it failed, else "".
        objective: the metric that the multirun compares, such as `val/loss`; "" if there is none.
        value: the objective's best value; None if there is none, or it is not finite.
        step: optimizer steps done at `value`.
        seconds: from the start of the job to its end, all attempts together.
    """

    number: int
    overrides: list[str]
    varied: list[str]
    sweep_dir: str
    status: str = RUNNING
    message: str = ""
    objective: str = ""
    value: float | None = None
    step: int | None = None
    seconds: float = 0.0
    choices: dict[str, str] = field(default_factory=dict)  # the option of each config group

    @property
    def name(self) -> str:
        """What the job is called: what it varies, or its number."""
        return " ".join(self.varied) or f"job {self.number}"


def read_job(run_dir: Path) -> Job | None:
    """Return what `job.json` says; None in the directory of a run that is no job, or if the file is damaged."""
    try:
        values = json.loads((run_dir / JOB).read_text(encoding="utf-8"))
        names = {each.name for each in fields(Job)}
        return Job(**{key: value for key, value in values.items() if key in names})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_job(run_dir: Path, job: Job) -> None:
    """Write `job.json`, completely or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    part = run_dir / f"{JOB}.{os.getpid()}.part"
    part.write_text(json.dumps(asdict(job), indent=1) + "\n", encoding="utf-8")
    os.replace(part, run_dir / JOB)


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
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / COMMAND).open("a", encoding="utf-8") as file:
        file.write(command + "\n")


def read_command(run_dir: Path) -> str | None:
    """Return the newest line of `command.txt`, or None if there is none."""
    try:
        lines = (run_dir / COMMAND).read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return lines[-1] if lines else None
