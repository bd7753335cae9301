"""Jobs of a sweep that end early because they do worse than others at the same step, by a pruner of Optuna.

The pruner sees a study that is made anew at each evaluation from the `metrics.jsonl` of the sweep's jobs. So it works
with every sweeper and launcher, on every machine that sees the directory of the sweep, and needs no database.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2x.config.keys import spell
from gpt2x.errors import UserError
from gpt2x.runtime.console import Progress, console
from gpt2x.runtime.jobs import FINISHED, PRUNED, read_job, read_jobs, read_sweep, write_job
from gpt2x.tracking import jsonl

if TYPE_CHECKING:
    from gpt2x.train.trainer import Trainer

PRUNERS = {"median": "MedianPruner", "percentile": "PercentilePruner", "threshold": "ThresholdPruner"}


def quiet_optuna() -> Any:
    """Import Optuna without its log; its database, which is not used, warns of SQLAlchemy 2."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def create_pruner(name: str, settings: Any) -> Any:
    """Return a pruner of Optuna.

    Args:
        name: `sweep.pruner`, one of PRUNERS.
        settings: `sweep.settings`, the arguments of Optuna's class.

    Raises:
        UserError: Optuna is not installed, or does not accept the settings.
    """
    try:
        optuna = quiet_optuna()
    except ImportError:
        raise UserError(
            f"sweep.pruner={name} needs Optuna: pip install 'gpt2x[sweep]', or leave sweep.pruner out."
        ) from None
    try:
        return getattr(optuna.pruners, PRUNERS[name])(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"sweep.settings={spell(settings)}: Optuna's {PRUNERS[name]} says: {error}.") from None


class Prune:
    """Ends a job of a sweep if `sweep.pruner` says so, after an evaluation.

    Args:
        trainer: of a run with `sweep.pruner`.

    Raises:
        UserError: the pruner cannot be used.
    """

    def __init__(self, trainer: Trainer):
        config = trainer.config.sweep
        assert config.pruner is not None
        self.pruner = create_pruner(config.pruner, config.settings)

    def is_due(self, trainer: Trainer) -> bool:
        """Return True after evaluations, until the last step."""
        return trainer.has_evaluated and not trainer.is_stopping

    def run(self, trainer: Trainer, metrics: Mapping[str, float], progress: Progress) -> None:
        """Ask the pruner on the main rank, and tell all ranks."""
        worse = trainer.mesh.is_main and self.should_end(trainer.run_dir)
        trainer.is_pruned = trainer.mesh.gather(float(worse)).max() > 0
        if trainer.is_pruned:
            console.notice(f"pruned at step {trainer.state.step}: worse than other jobs of the sweep at this step")

    def should_end(self, run_dir: Path) -> bool:
        """Return whether the pruner ends the job in `run_dir`, and write it down; False for a run that is no job."""
        job = read_job(run_dir)
        sweep = read_sweep(Path(job.sweep_dir)) if job else None
        if job is None or sweep is None or not sweep.direction:
            return False
        values = evaluations(run_dir, sweep.objective)
        others = [
            evaluations(other.path, sweep.objective)
            for other in read_jobs(Path(job.sweep_dir))
            if other.number != job.number and other.status == FINISHED
        ]
        is_pruned = self.prunes(values, [each for each in others if each], sweep.direction)
        if is_pruned:
            write_job(replace(job, status=PRUNED))
        return is_pruned

    def prunes(self, values: Mapping[int, float], others: Sequence[Mapping[int, float]], direction: str) -> bool:
        """Return whether the pruner ends a job with `values` by step, given those of jobs that are done.

        As in Optuna, jobs that still run or were pruned are no measure.
        """
        optuna = quiet_optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna 2 calls `add_trial` experimental
            study = optuna.create_study(direction="minimize" if direction == "lower" else "maximize")
            for other in others:
                last = other[max(other)]
                study.add_trial(optuna.trial.create_trial(value=last, intermediate_values=dict(other)))
            trial = study.ask()
            for step, value in values.items():
                trial.report(value, step)
            return bool(self.pruner.prune(study, study.trials[-1]))


def evaluations(run_dir: Path, metric: str) -> dict[int, float]:
    """Return the finite values of a metric by step; none if there is nothing to read."""
    try:
        rows = jsonl.read(run_dir / "metrics.jsonl")
    except (OSError, ValueError):
        return {}
    return {row["step"]: row[metric] for row in rows if metric in row and math.isfinite(row[metric])}
