"""A sweep of the learning rate over the first updates of a run (Smith, arXiv:1506.01186, section 3.3).

The rate grows by a constant factor from update to update. The losses are smoothed by an exponential mean whose bias is
corrected. The sweep ends when that mean has risen far above its minimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gpt2x.config import TrainConfig
from gpt2x.config.schema_sweeps import LrFindConfig
from gpt2x.runtime.console import Progress, console
from gpt2x.tracking import MetricsLog
from gpt2x.tracking.plot_lr_find import plot_lr_find
from gpt2x.train.hooks import ShowStep
from gpt2x.train.trainer import Trainer

NOISY_SHARE = 0.1  # of the sweep, at its start: the mean is still of few losses


@dataclass
class RateSweep:
    """The points of a sweep.

    Attributes:
        options: its range and its smoothing.
        rates: of each update.
        losses: before each update.
        smoothed: their mean.
    """

    options: LrFindConfig
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    mean: float = 0.0

    def rate(self, step: int) -> float:
        """Return the rate of update `step`, counted from 1."""
        options = self.options
        assert options.num_steps is not None
        share = (step - 1) / (options.num_steps - 1)
        return options.min_rate * (options.max_rate / options.min_rate) ** share

    def add(self, loss: float) -> float:
        """Add the loss before the next update -> the mean."""
        decay = self.options.smoothing
        self.rates.append(self.rate(len(self.rates) + 1))
        self.losses.append(loss)
        self.mean = decay * self.mean + (1 - decay) * loss
        self.smoothed.append(self.mean / (1 - decay ** len(self.losses)))
        return self.smoothed[-1]

    @property
    def has_diverged(self) -> bool:
        """True if the last loss is not finite, or the mean far above its minimum."""
        last = self.smoothed[-1]
        return not math.isfinite(last) or last > self.options.stop_factor * min(self.smoothed)

    @property
    def lowest(self) -> int | None:
        """The index of the lowest mean; None if the mean has not fallen."""
        finite = [value if math.isfinite(value) else math.inf for value in self.smoothed]
        index = int(np.argmin(finite))
        return index if index > self.num_noisy else None

    @property
    def steepest(self) -> int | None:
        """The index at which the mean falls fastest with the logarithm of the rate, before its minimum."""
        if self.lowest is None or self.lowest - self.num_noisy < 2:
            return None
        part = slice(self.num_noisy, self.lowest + 1)
        slopes = np.gradient(self.smoothed[part], np.log(self.rates[part]))
        return self.num_noisy + int(np.argmin(slopes))

    @property
    def num_noisy(self) -> int:
        """The number of points at the start from which nothing is read."""
        return int(NOISY_SHARE * (self.options.num_steps or 0))


def find_rate(trainer: Trainer) -> RateSweep:
    """Sweep the rate, and write `lr_find.jsonl` and `lr_find.png`; no checkpoint, no validation, no tracker."""
    config = trainer.config
    options, log = config.lr_find, MetricsLog(trainer.run_dir / "lr_find.jsonl")
    assert options.num_steps is not None
    sweep, show = RateSweep(options), ShowStep()
    trainer.rate = sweep.rate
    with Progress(options.num_steps, 0, config.trainer.log_every_steps) as progress:
        source = trainer.batches()
        while len(sweep.rates) < options.num_steps:
            metrics = trainer.timed_update(source, progress)
            mean = sweep.add(metrics["train/loss"])
            show.run(trainer, metrics, progress)
            if trainer.mesh.is_main:
                log.append(trainer.state.step, {"lr": sweep.rates[-1], "loss": sweep.losses[-1], "smoothed": mean})
            if sweep.has_diverged or is_stuck(trainer, config):
                break
        source.close()
    log.close()
    if trainer.mesh.is_main:
        report(trainer, sweep)
    return sweep


def is_stuck(trainer: Trainer, config: TrainConfig) -> bool:
    """Return whether updates are left out, as they are once a run has diverged; fp16 leaves out some before."""
    limit = config.trainer.max_skipped_steps if config.hardware.precision == "fp16" else 1
    return trainer.state.skipped_in_a_row >= max(limit, 1)


def report(trainer: Trainer, sweep: RateSweep) -> None:
    """Draw the sweep and print what it suggests."""
    path = trainer.run_dir / "lr_find.png"
    marks = {}
    if sweep.steepest is not None and sweep.lowest is not None:
        marks = {"steepest descent": sweep.rates[sweep.steepest], "a tenth of the minimum's": suggested(sweep)}
    title = f"{trainer.decision.model.name} on {trainer.config.dataset.name}, {trainer.config.optimizer.name}"
    plot_lr_find(path, title, sweep.rates, sweep.losses, sweep.smoothed, marks, trainer.task.unit)
    for line in conclusions(sweep):
        console.notice(line)
    console.notice(f"picture: {path}")


def suggested(sweep: RateSweep) -> float:
    """Return a tenth of the rate at which the mean was lowest."""
    assert sweep.lowest is not None
    return sweep.rates[sweep.lowest] / 10


def conclusions(sweep: RateSweep) -> list[str]:
    """Return what the sweep shows, in words."""
    options, last = sweep.options, sweep.rates[-1]
    end = f"diverged at the rate {last:.2e}" if sweep.has_diverged else f"has not diverged up to {last:.2e}"
    lines = [f"the loss {end}, after {len(sweep.rates)} of {options.num_steps} updates"]
    if sweep.lowest is None or sweep.steepest is None:
        lines.append(
            "the smoothed loss has not fallen, so no rate is suggested; use more lr_find.num_steps, or a different "
            f"range than lr_find.min_rate={options.min_rate:g} to lr_find.max_rate={options.max_rate:g}"
        )
        return lines
    steepest, lowest = sweep.rates[sweep.steepest], sweep.rates[sweep.lowest]
    lines.append(f"it falls most steeply at optimizer.learning_rate={steepest:.1e}")
    low = sweep.smoothed[sweep.lowest]
    tenth = suggested(sweep)
    lines.append(f"it is lowest, {low:.4f}, at {lowest:.1e}: a tenth is optimizer.learning_rate={tenth:.1e}")
    return lines
