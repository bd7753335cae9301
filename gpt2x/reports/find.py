"""From what was typed to run directories: runs, multiruns, folders of runs, MLflow experiments."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.reports.run import DAMAGED, EVALUATE, METRICS, Run, is_run, read_run
from gpt2x.runtime.jobs import read_job

# Folders that hold copies of configurations, or no runs at all
SKIPPED = {"checkpoints", "mlartifacts", "mlruns", "profile", "logs", "wandb", "tensorboard", "__pycache__"}


def find_runs(arguments: Sequence[str], outputs: Path) -> list[Run]:
    """Return the runs that are meant, each once, in the order typed; within a folder by job, then by name.

    Args:
        arguments: run directories, folders with runs below them, or names of MLflow experiments.
        outputs: `paths.outputs`, below which the runs of an experiment are looked up.

    Raises:
        UserError: an argument names no run.
    """
    runs: dict[Path, Run] = {}
    for argument in arguments:
        path = Path(argument).expanduser()
        if path.is_dir():
            matches = [read_run(path)] if is_run(path) else below(path)
        else:
            matches = of_experiment(argument, path, outputs)
        for run in matches:
            runs.setdefault(run.path.resolve(), run)
    return list(runs.values())


def below(folder: Path) -> list[Run]:
    """Return the runs of training and evaluation below a folder.

    Raises:
        UserError: there are none.
    """
    runs = [read_run(path) for path in sorted(run_directories(folder), key=order)]
    runs = [run for run in runs if run.kind or run.job or (run.status == DAMAGED and (run.path / METRICS).is_file())]
    if not runs:
        raise UserError(
            f"{folder} holds no runs: no folder below it has a {METRICS}. Give a run directory, the directory of a "
            "multirun, or a folder of runs such as outputs/pretrain."
        )
    return runs


def run_directories(folder: Path) -> Iterable[Path]:
    """Yield the run directories below a folder; what a run directory holds is not searched."""
    for path, folders, _ in os.walk(folder):
        here = Path(path)
        if is_run(here):
            folders.clear()
            yield here
        folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]


def order(path: Path) -> tuple[str, int, str]:
    """Return the key that sorts runs: jobs of a multirun by number, other runs by name, which is their time."""
    job = read_job(path)
    return str(path.parent), job.number if job else int(path.name) if path.name.isdecimal() else -1, path.name


def of_experiment(name: str, path: Path, outputs: Path) -> list[Run]:
    """Return the runs below `outputs` whose experiment has this name, as MLflow groups them.

    Raises:
        UserError: there are none.
    """
    runs = below(outputs) if outputs.is_dir() else []
    names = {experiment_of(run) for run in runs if run.config}
    if path.is_file():
        raise UserError(f"{name} is a file; give the run directory: {path.parent}.")
    if name not in names:
        experiments = f" Experiments there: {', '.join(sorted(names))}." if names else ""
        raise UserError(
            f"{name} is neither a directory nor an experiment of a run below {outputs}.{experiments} Give a run "
            "directory, or --outputs DIRECTORY if runs are elsewhere."
        )
    return [run for run in runs if run.config and experiment_of(run) == name]


def experiment_of(run: Run) -> str:
    """Return the name of the MLflow experiment of a run, tracked or not."""
    default = EVALUATE if run.kind == EVALUATE else run.config.get("task.name")
    return str(run.config.get("tracker.experiment") or default)
