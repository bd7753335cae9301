"""The start of a sweep: which directory it has, what its jobs are compared by, and whether it continues an old one.

Hydra calls `SweepStart` before the first job, in the process that the user started.
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from gpt2x.config.messages import quoted
from gpt2x.errors import UserError, did_you_mean, require, require_choice
from gpt2x.runtime.console import console
from gpt2x.runtime.files import create_new
from gpt2x.runtime.jobs import COMMAND, SWEEP, Sweep, read_sweep, typed_command, write_command, write_sweep
from gpt2x.runtime.owner import is_record, owning
from gpt2x.tasks.registry import TASKS

DIRECTIONS = {  # of metrics that a task does not own
    "train/loss": "lower",
    "train/ppl": "lower",
    "perf/step_time_s": "lower",
    "perf/startup_time_s": "lower",
    "perf/compile_time_s": "lower",
    "perf/memory_gb": "lower",
    "perf/device_memory_peak_gb": "lower",
    "perf/tokens_per_s": "higher",
    "perf/mfu": "higher",
}
CHOICE_WAIT_S = 120.0  # for other sweeps that choose a directory at the same time
OPTUNA_DIRECTIONS = {"lower": "minimize", "higher": "maximize"}


class CommandRejected(BaseException):
    """A mistake in a command, for callbacks of Hydra. Hydra turns each `Exception` of a callback into a warning."""

    def __init__(self, error: UserError):
        super().__init__(str(error))
        self.error = error


class SweepStart(Callback):
    """Settles the directory of a sweep and writes `sweep.json`.

    Attributes:
        sweep_dir: the directory of the sweep that this process has started, or None.
        owns: that directory, until it is closed.
    """

    sweep_dir: Path | None = None
    owns = ExitStack()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Settle the directory, before Hydra starts a job.

        Raises:
            CommandRejected: the command line asks for something that cannot be.
        """
        try:
            SweepStart.sweep_dir = start_sweep(config)
        except UserError as error:
            raise CommandRejected(error) from None
        except OSError as error:
            message = (
                f"cannot write {error.filename}: {error.strerror}; give hydra.sweep.dir=DIRECTORY that is writable."
            )
            raise CommandRejected(UserError(message)) from None


def start_sweep(config: DictConfig) -> Path | None:
    """Return the directory of a sweep, which is new or continues; None if nothing is run.

    Args:
        config: composed from what all jobs share; `hydra.sweep.dir` in it is set.

    Raises:
        UserError: for anything that is wrong with the sweep as a whole.
    """
    if str(OmegaConf.select(config, "plan", default=False)).lower() != "false":
        folder = Path(tempfile.mkdtemp(prefix="gpt2x-plans-"))  # Hydra writes a file there
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        set_sweep_dir(config, folder)
        return None
    check_keys(config)
    sweep = sweep_of(config)
    has_directory = any(override.startswith("hydra.sweep.dir=") for override in as_typed(config.hydra.overrides.hydra))
    sweep_dir = Path(os.path.abspath(config.hydra.sweep.dir))
    resumes = OmegaConf.select(config, "resume", default=None) == "auto"
    if has_directory:
        SweepStart.owns.enter_context(owning(sweep_dir))
        require_same_sweep(sweep_dir, sweep)
        write_sweep(sweep_dir, sweep)
    elif resumes:
        with owning(sweep_dir.parent, CHOICE_WAIT_S):  # of several that start at once, one chooses at a time
            earlier = newest_sweep(sweep_dir.parent, sweep)
            if earlier is None:
                console.notice(f"resume=auto: no sweep with this command in {sweep_dir.parent}; a new one starts")
            sweep_dir = earlier or create_new(sweep_dir)
            SweepStart.owns.enter_context(owning(sweep_dir))
            write_sweep(sweep_dir, sweep)
    else:
        sweep_dir = create_new(sweep_dir)
        SweepStart.owns.enter_context(owning(sweep_dir))
        write_sweep(sweep_dir, sweep)
    set_sweep_dir(config, sweep_dir)
    if "submitit" in str(config.hydra.launcher.get("_target_", "")):
        console.notice(f"what the jobs print is in {sweep_dir}/.submitit/*/*_log.out")
    write_command(sweep_dir, sweep.command)
    return sweep_dir


def sweep_of(config: DictConfig) -> Sweep:
    """Return the sweep that a command line describes.

    Raises:
        UserError: its objective or its search space cannot be used.
    """
    shared = OverridesParser.create().parse_overrides(as_typed(config.hydra.overrides.task))
    params = OmegaConf.select(config, "hydra.sweeper.params", default=None) or {}
    space = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    shared = [each for each in shared if each.get_key_element().lstrip("+~") != "resume"]
    require_once(shared)
    overrides = list({each.get_key_element().lstrip("+"): each for each in [*space, *shared]}.values())
    varied = [each.get_key_element().lstrip("+") for each in overrides if each.is_sweep_override()]
    require(
        "output" in varied or not any(each.get_key_element() == "output" for each in overrides),
        "output= would be written by every job of the sweep; give one per job (output=A,B), or leave it out.",
    )
    objective, direction = objective_of(config)
    is_optuna = "optuna" in str(config.hydra.sweeper.get("_target_", ""))
    if is_optuna:
        check_optuna(config.hydra.sweeper, varied, objective, direction)
    num_jobs = int(config.hydra.sweeper.n_trials) if is_optuna else count_jobs(overrides)
    batch = config.hydra.sweeper.get("n_jobs" if is_optuna else "max_batch_size", None)  # started together
    parallel = min(parallel_jobs(config), num_jobs, int(batch or num_jobs))
    texts = sorted(each.input_line or "" for each in overrides)
    return Sweep(typed_command(), texts, varied, num_jobs, parallel, objective, direction)


def require_once(overrides: Sequence[Override]) -> None:
    """Check that a key with several values is given once: Hydra takes the last, Optuna's sweeper the fixed one.

    Raises:
        UserError: it is given again.
    """
    keys = [each.get_key_element().lstrip("+") for each in overrides]
    for each, name in zip(overrides, keys, strict=True):
        if each.is_sweep_override() and keys.count(name) > 1:
            raise UserError(f"{name} is given {keys.count(name)} times, with several values; give it once.")


def as_typed(overrides: ListConfig) -> list[str]:
    """Return overrides with their ${…} as they are, which only the configuration that they belong to can resolve."""
    return [str(each) for each in OmegaConf.to_container(overrides, resolve=False) or []]


def count_jobs(overrides: Sequence[Override]) -> int:
    """Return how many jobs Hydra's basic sweeper makes of a command line."""
    counts = {}
    for each in overrides:
        is_list = each.is_sweep_override() and each.is_discrete_sweep()
        counts[each.get_key_element()] = len(list(each.sweep_string_iterator())) if is_list else 1
    return math.prod(counts.values())


def parallel_jobs(config: DictConfig) -> int:
    """Return how many jobs share this machine: `sweep.parallel_jobs`, or what the launcher says."""
    asked = OmegaConf.select(config, "sweep.parallel_jobs", default=None)
    if asked:
        return int(asked)
    launcher, cores = config.hydra.launcher, len(os.sched_getaffinity(0))
    target = str(launcher.get("_target_", ""))
    if "joblib" in target:
        number = int(launcher.n_jobs)
        require(number != 0, "hydra.launcher.n_jobs=0 starts no job; give a number from 1 on, or -1 for all cores.")
        return cores if number == -1 else max(1, number if number > 0 else cores + 1 + number)
    return cores if target.endswith("submitit_launcher.LocalLauncher") else 1


def objective_of(config: DictConfig) -> tuple[str, str]:
    """Return the metric that jobs are compared by and its better value; empty for commands that have none.

    Raises:
        UserError: nobody knows the metric's direction.
    """
    if "trainer" not in config:
        return "", ""
    metric = config.sweep.objective or config.trainer.best_metric
    kind = str(OmegaConf.select(config, "task.objective", default="language_modeling"))
    metrics: Mapping[str, str] = TASKS.load(kind).metrics if kind in TASKS.names() else {}
    directions = DIRECTIONS | dict(metrics)
    direction = config.sweep.direction or directions.get(metric)
    require(
        direction == directions.get(metric, direction),
        f"sweep.direction={direction}, but the better value of {metric} is the {directions.get(metric)} one; leave "
        "sweep.direction out.",
    )
    if direction is None and config.sweep.objective is None:
        return metric, ""  # trainer.best_metric is wrong, which each job says
    require(
        direction is not None,
        f"sweep.objective={metric}: gpt2x does not know whether a lower value is better; "
        f"{did_you_mean(metric, directions)}give sweep.direction=lower or higher.",
    )
    return metric, str(direction)


def check_keys(config: DictConfig) -> None:
    """Check the keys of the group `sweep`, with which all jobs would fail.

    Raises:
        UserError: a value is not allowed, or there is no such pruner, or it does not accept `sweep.settings`.
    """
    from gpt2x.train.pruning import PRUNERS, create_pruner

    if "sweep" not in config:
        return
    name, direction, number = config.sweep.pruner, config.sweep.direction, config.sweep.parallel_jobs
    require(number is None or number >= 1, f"sweep.parallel_jobs={number} must be at least 1.")
    if direction is not None:
        require_choice("sweep.direction", str(direction), tuple(OPTUNA_DIRECTIONS))
    if name is not None:
        require_choice("sweep.pruner", str(name), tuple(PRUNERS))
        create_pruner(str(name), OmegaConf.to_container(config.sweep.settings, resolve=True))
        require(
            OmegaConf.select(config, "trainer.eval_every_steps", default=None) is not None,
            f"sweep.pruner={name} compares jobs at their evaluations; give trainer.eval_every_steps=STEPS.",
        )


def check_optuna(sweeper: DictConfig, varied: Sequence[str], objective: str, direction: str) -> None:
    """Check that Optuna has something to search, searches in the right direction, and is quiet.

    Raises:
        UserError: it does not.
    """
    from gpt2x.train.pruning import quiet_optuna

    quiet_optuna()
    require(
        bool(varied),
        "hydra/sweeper=optuna has nothing to search; give ranges such as "
        "'optimizer.learning_rate=interval(1e-4,1e-2)', or hparams_search=learning_rate.",
    )
    require(int(sweeper.n_trials) >= 1, f"hydra.sweeper.n_trials={sweeper.n_trials} must be at least 1.")
    right = OPTUNA_DIRECTIONS.get(direction)
    direction_typed = str(getattr(sweeper.direction, "name", sweeper.direction))
    require(
        right is None or direction_typed == right,
        f"hydra.sweeper.direction={direction_typed}, but the better value of {objective} is the {direction} one; "
        f"give hydra.sweeper.direction={right}.",
    )


def require_same_sweep(sweep_dir: Path, sweep: Sweep) -> None:
    """Check that a directory that was typed is new, or holds a sweep over the same keys.

    Values may have been corrected: which jobs run again is decided by their own overrides.

    Raises:
        UserError: it holds something else.
    """
    if not sweep_dir.is_dir() or all(is_record(path) for path in sweep_dir.iterdir()):
        return
    earlier = read_sweep(sweep_dir)
    if earlier is None:
        raise UserError(f"hydra.sweep.dir={sweep_dir} has files, but no {SWEEP}: give a new or empty directory.")
    differing = sorted(set(earlier.overrides) ^ set(sweep.overrides))
    keys = ({each.partition("=")[0] for each in one.overrides} for one in (earlier, sweep))
    if len(set(map(frozenset, keys))) > 1:
        raise UserError(
            f"hydra.sweep.dir={sweep_dir} holds a different sweep ({'; '.join(differing[:5])}): give a new directory, "
            f"or the keys of the old command, which was: {earlier.command}"
        )
    if differing:
        console.notice(f"the sweep continues with a corrected command ({'; '.join(differing[:5])})")


def newest_sweep(folder: Path, sweep: Sweep) -> Path | None:
    """Return the newest directory in `folder` of a sweep with the same overrides, or None."""
    sweeps = [
        (path.stat().st_mtime, path.parent)
        for path in folder.glob(f"*/{SWEEP}")
        if (earlier := read_sweep(path.parent)) and earlier.overrides == sweep.overrides
    ]
    return max(sweeps)[1] if sweeps else None


def set_sweep_dir(config: DictConfig, sweep_dir: Path | str) -> None:
    """Make `sweep_dir` Hydra's directory of the sweep, also where a launcher composes again for each job."""
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(sweep_dir)
        others = [each for each in as_typed(config.hydra.overrides.hydra) if not each.startswith("hydra.sweep.dir=")]
        config.hydra.overrides.hydra = [*others, quoted("hydra.sweep.dir", str(sweep_dir))]


def remove_unused(sweep_dir: Path) -> None:
    """Remove the directory of a sweep that Hydra rejected before its first job."""
    if {path.name for path in sweep_dir.iterdir() if not is_record(path)} <= {SWEEP, COMMAND, "multirun.yaml"}:
        shutil.rmtree(sweep_dir)


def remove_places(sweep_dir: Path) -> None:
    """Remove the lock files of a sweep that has ended."""
    from gpt2x.runtime.shares import FOLDER

    shutil.rmtree(sweep_dir / FOLDER, ignore_errors=True)
