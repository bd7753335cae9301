"""The jobs of a multirun as points: what each varied, and what it reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2x.config.keys import spell
from gpt2x.reports.naming import SEED, naming_keys, overrides_of, short_keys, values_of
from gpt2x.reports.run import Run, finite
from gpt2x.runtime.jobs import FINISHED

SHARE_OF_GRID = 0.6  # of all combinations of values; searches try fewer


@dataclass(frozen=True)
class Trial:
    """A job.

    Attributes:
        number: from 0.
        values: what it varied, by key, as typed.
        seed: its seed, as text.
        value: the best value of the objective; None if there is none.
        status: as `gpt2x.reports.run.Run.status`.
    """

    number: int
    values: dict[str, str]
    seed: str
    value: float | None
    status: str


@dataclass(frozen=True)
class Trials:
    """The jobs of one multirun.

    Attributes:
        metric: the objective.
        trials: in the order of their numbers.
        keys: what was varied apart from the seed, and has more than one value among jobs that reached any.
    """

    metric: str
    trials: list[Trial]
    keys: list[str]

    @property
    def measured(self) -> list[Trial]:
        """Those that have a value."""
        return [trial for trial in self.trials if trial.value is not None]

    @property
    def counted(self) -> list[Trial]:
        """Those whose values count in means and as the best: finished ones, or all before any has finished."""
        return [trial for trial in self.measured if trial.status == FINISHED] or self.measured

    @property
    def states(self) -> dict[str, int]:
        """The number of jobs by status."""
        counts: dict[str, int] = {}
        for trial in self.trials:
            counts[trial.status] = counts.get(trial.status, 0) + 1
        return counts

    @property
    def is_grid(self) -> bool:
        """Whether most combinations of values were tried, as no search does."""
        combinations = {tuple(trial.values.get(key, "") for key in self.keys) for trial in self.measured}
        return len(combinations) >= SHARE_OF_GRID * math.prod(len(self.levels(key)) for key in self.keys)

    def levels(self, key: str) -> list[str]:
        """Return the values of a key: numbers ascending, words as they first appear."""
        values = list(dict.fromkeys(trial.values.get(key, "") for trial in self.measured))
        return sorted(values, key=float) if is_numeric(values) else values

    def short(self, key: str) -> str:
        """Return a key's last word, if no other key has it."""
        return short_keys(self.keys).get(key, key)


def trials_of(runs: Sequence[Run]) -> Trials:
    """Return the jobs of a multirun as points, from their runs."""
    metric = next((run.best_metric for run in runs if run.best_metric in run.metrics), "")
    metric = next((run.job.objective for run in runs if run.job and run.job.objective), metric)
    varied = [_varied(run) for run in runs]
    if not any(varied):
        configurations = [values_of(run) for run in runs]
        keys = [*naming_keys(configurations), SEED]
        varied = [{key: each[key] for key in keys if key in each} for each in configurations]
    trials = []
    for index, (run, values) in enumerate(zip(runs, varied, strict=True)):
        best = run.best(metric) if metric else None
        value = run.job.value if run.job and run.job.value is not None else best.value if best else None
        number = run.job.number if run.job else index
        seed = values.pop(SEED, str(run.seed))
        trials.append(Trial(number, values, seed, finite(value), run.status))
    keys = list(dict.fromkeys(key for trial in trials for key in trial.values))
    drawn = [trial for trial in trials if trial.value is not None] or trials
    keys = [key for key in keys if len({trial.values.get(key, "") for trial in drawn}) > 1]
    return Trials(metric, sorted(trials, key=lambda trial: trial.number), keys)


def _varied(run: Run) -> dict[str, str]:
    return {key: spell(value) for key, value in overrides_of(run.job.varied).items()} if run.job else {}


def is_numeric(values: Sequence[str]) -> bool:
    """Return whether all values are finite numbers."""
    try:
        return bool(values) and all(math.isfinite(float(value)) for value in values)
    except ValueError:
        return False


def is_log(values: Sequence[str], key: str) -> bool:
    """Return whether an axis of these values reads better as a logarithm: rates, and what spans a factor of 20."""
    if not is_numeric(values) or min(map(float, values)) <= 0:
        return False
    ratio = max(map(float, values)) / min(map(float, values))
    return ratio >= (3 if key.endswith(("rate", "weight_decay", "eps")) else 20)
