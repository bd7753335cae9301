"""Which updates are left out, and when a run has diverged; the same on every rank (docs/training.md).

Loss and norm are those of the global batch, which every rank has, and so are the numbers kept of them. The update's
graph compares with the limits (`gpt2x.train.update.Update`), so an update that is left out changes nothing.
"""

from __future__ import annotations

import math

import numpy as np

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.runtime.console import console
from gpt2x.train.state import LoopState
from gpt2x.train.step import UpdateResult


class Guard:
    """Counts updates that are left out and losses that have exploded.

    Args:
        config: of the run.
        model: what is trained.
    """

    def __init__(self, config: TrainConfig, model: ModelConfig):
        self.options = config.trainer
        factor = self.options.explosion_factor
        self.loss_limit = math.inf if factor is None else factor * guessing_loss(model)

    def limits(self, state: LoopState) -> tuple[float, float]:
        """Return the largest loss and gradient norm with which the next update is made.

        They are the mean of the last trainer.spike_window updates plus trainer.spike_sigma standard deviations, and
        infinite until there are as many (OLMo-core's `SkipStepOptimizer`, which counts spikes in the mean as well, so
        that a run whose loss has risen for good continues).
        """
        window = self.options.spike_window
        if window is None or len(state.recent) < window:
            return math.inf, math.inf
        values = np.array(state.recent, np.float64)
        loss, norm = values.mean(axis=0) + self.options.spike_sigma * values.std(axis=0, ddof=1)
        return float(loss), float(norm)

    def count(self, state: LoopState, result: UpdateResult, limits: tuple[float, float]) -> None:
        """Account for an update in `state`, and say if it was left out.

        Args:
            state: of the run, whose `step` is that of the update.
            result: of the update.
            limits: with which it was computed.
        """
        is_finite = math.isfinite(result.norm)
        if result.is_made:
            state.num_updates, state.skipped_in_a_row = state.num_updates + 1, 0
        else:
            state.skipped_in_a_row += 1
            console.warn(f"step {state.step}: {self.reason(result, limits, state)}, update skipped")
        has_exploded = self.loss_limit < math.inf and not result.loss <= self.loss_limit  # or is NaN
        state.exploded_in_a_row = state.exploded_in_a_row + 1 if has_exploded else 0
        if has_exploded and state.exploded_in_a_row == 1:
            console.warn(
                f"step {state.step}: the loss {result.loss:g} is more than trainer.explosion_factor="
                f"{self.options.explosion_factor:g} times that of guessing; no checkpoint is written until it falls"
            )
        if self.options.spike_window is not None and is_finite and math.isfinite(result.loss):
            state.recent = [*state.recent, (result.loss, result.norm)][-self.options.spike_window :]

    def reason(self, result: UpdateResult, limits: tuple[float, float], state: LoopState) -> str:
        """Return why an update was left out."""
        if not math.isfinite(result.norm):
            return f"gradient norm {result.norm} at loss scale {state.loss_scale.scale:g}"
        loss, norm = limits
        what = f"loss {result.loss:g} is above {loss:g}" if result.loss > loss else ""
        what = what or f"gradient norm {result.norm:g} is above {norm:g}"
        return f"{what} (trainer.spike_window={self.options.spike_window}, spike_sigma={self.options.spike_sigma:g})"

    def divergence(self, state: LoopState) -> str | None:
        """Return why the run has diverged, or None."""
        limit = self.options.max_skipped_steps
        if state.skipped_in_a_row > limit:
            what = f"{state.skipped_in_a_row} updates in a row were left out"
        elif state.exploded_in_a_row > limit:
            what = (
                f"{state.exploded_in_a_row} updates in a row had a loss above {self.loss_limit:.1f}, which is "
                f"trainer.explosion_factor={self.options.explosion_factor:g} times that of guessing"
            )
        else:
            return None
        return f"trainer.max_skipped_steps={limit}: {what}, so the run has diverged"


def guessing_loss(model: ModelConfig) -> float:
    """Return the cross-entropy of equal probabilities, of all tokens or all classes, in nats."""
    count = len(model.labels) if model.labels else model.vocab_size or 0
    return math.log(max(2, count))
