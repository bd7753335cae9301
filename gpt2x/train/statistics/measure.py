"""An update with the statistics of trainer.stats, as metrics named `stats/KIND/LABEL`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from gpt2x.config import TrainerConfig
from gpt2x.data.sampling import Batch
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.statistics.activations import ActivationMeter
from gpt2x.train.statistics.gradients import GradientMeter
from gpt2x.train.statistics.tensors import (
    Squares,
    by_label,
    norms,
    over_processes,
    snapshot,
    square_differences,
    squares,
)
from gpt2x.train.step import GraphStep, StepInputs, UpdateResult

PREFIX = "stats/"
TIME = f"{PREFIX}time_s"


class Statistics:
    """Measures an update every trainer.stats_every_steps; the update computes what it would without.

    Args:
        config: which statistics, and how often.
        names: the logical tensors that are trained.
        tensors: those of this process.
        mesh: the processes.
        gradients: of this process; None if they are not chosen.
        activations: of the net; None if they are not chosen.
    """

    def __init__(
        self,
        config: TrainerConfig,
        names: list[str],
        tensors: RankTensors,
        mesh: Mesh,
        gradients: GradientMeter | None,
        activations: ActivationMeter | None,
    ):
        assert config.stats_every_steps is not None
        self.every, self.chosen, self.per = config.stats_every_steps, config.stats, config.stats_per
        self.names, self.tensors, self.mesh = names, tensors, mesh
        self.gradients, self.activations = gradients, activations
        self.reads_weights = not {"weights", "updates"}.isdisjoint(config.stats)
        self.seconds = 0.0

    def is_due(self, step: int) -> bool:
        """Return whether update `step`, counted from 1, is measured."""
        return step % self.every == 0

    def update(self, train_step: GraphStep, inputs: StepInputs, batch: Batch) -> tuple[UpdateResult, dict[str, float]]:
        """Make an update -> its result, and the statistics with the seconds that they took; every process calls this.

        Weights and activations are those before the update.
        """
        self.seconds, gradient_squares = 0.0, {}
        metrics: dict[str, float] = {}
        with self.timed():
            before = snapshot(self.tensors, self.names) if self.reads_weights else {}
            if self.activations is not None:
                metrics |= self.activations.measure(inputs, batch)

        def measure(inputs: StepInputs) -> None:
            with self.timed():
                gradient_squares.update(self.gradients.measure(inputs))

        result = train_step(inputs, measure if self.gradients is not None else None)
        with self.timed():
            if self.reads_weights:  # also a process without any that count, since all of them sum
                weights = self.reduced(squares(before))
                if "weights" in self.chosen:
                    metrics |= named("weight_norm", norms(weights))
                if "updates" in self.chosen:
                    changes = self.reduced(square_differences(self.tensors, before))
                    ratios = {label: changes[label] / weights[label] for label in weights if weights[label] > 0}
                    metrics |= named("update_ratio", norms(ratios))
            if self.gradients is not None:
                scale = float(inputs.loss_scale.asnumpy()) * result.counted_fraction
                gradient_norms = norms(self.reduced(gradient_squares))
                metrics |= named("grad_norm", {label: norm / scale for label, norm in gradient_norms.items()})
        metrics["time_s"] = self.seconds
        return result, {f"{PREFIX}{name}": value for name, value in metrics.items()}

    def reduced(self, local: Squares) -> Squares:
        """Return sums of squares over all processes, by label."""
        return by_label(self.names, over_processes(self.mesh, self.names, local), self.per)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of a block to `seconds`."""
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


def named(kind: str, values: dict[str, float]) -> dict[str, float]:
    """Return values by KIND/LABEL."""
    return {f"{kind}/{label}": value for label, value in values.items()}
