"""The keys of sweeps: of several runs, and of the learning rate within one (see `gpt2x.config.schema`)."""

# ruff: noqa: RUF009  (`key` returns fields)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2x.config.metadata import HOST, key


@dataclass
class LrFindConfig:
    """A sweep of the learning rate over the first steps of a run, by debug=lr_find (docs/debugging.md)."""

    num_steps: int | None = key("updates of the sweep, after which the run ends", HOST, None, at_least=10,
                                null="no sweep, the run trains")  # fmt: skip
    min_rate: float = key("the first rate", HOST, 1e-7, above=0)
    max_rate: float = key("the last rate, if the loss does not diverge before", HOST, 10.0, above=0)
    smoothing: float = key("decay of the mean of losses, whose bias is corrected", HOST, 0.9, at_least=0, below=1)
    stop_factor: float = key("end when the mean is this many times its minimum", HOST, 2.0, above=1)


@dataclass
class SweepConfig:
    """A multirun (-m): what its jobs are compared by, and whether bad ones end early (docs/sweeps.md)."""

    objective: str | None = key("the metric whose best value a job returns", HOST, None, null="trainer.best_metric")
    direction: str | None = key("the objective's better value", HOST, None, choices=("lower", "higher"),
                                null="as gpt2x knows it")  # fmt: skip
    parallel_jobs: int | None = key("jobs that share a machine's cores", HOST, None, at_least=1,
                                    null="the launcher's number")  # fmt: skip
    pruner: str | None = key("ends a job that does worse than others at a step, by Optuna's pruner", HOST, None,
                             choices=("median", "percentile", "threshold"), null="off")  # fmt: skip
    settings: dict[str, Any] = key("arguments of Optuna's pruner, as sweep.settings.n_warmup_steps=100", HOST, {})
