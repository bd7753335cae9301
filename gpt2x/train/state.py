"""The position of a run: with weights and optimizer states it is all that a checkpoint needs."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from gpt2x.optim.loss_scale import LossScale
from gpt2x.train.decision import Decision


@dataclass
class LoopState:
    """The position of a run in its steps and its data, and the best evaluation so far.

    Attributes:
        step: updates tried.
        num_updates: updates made; skipped ones do not count towards the optimizer's bias correction.
        skipped_in_a_row: updates left out since the last one made.
        epoch: passes over the training rows that are complete.
        batch: batches of this epoch that have been used.
        units_seen: what counted in the loss: tokens, or a classifier's texts.
        loss_scale: of fp16; constantly 1 in other precisions.
        best_step: the step of the best evaluation.
        best_value: the best value of trainer.best_metric.
        evaluations_without_gain: evaluations in a row without a better value, for early stopping.
        data_sha256: hash of the training rows that `batch` refers to; "" in checkpoints of older versions.
        base_path: the frozen weights that adapters stand beside; None if there are none.
        base_fingerprint: hash of those weights.
    """

    step: int = 0
    num_updates: int = 0
    skipped_in_a_row: int = 0
    epoch: int = 0
    batch: int = 0
    units_seen: int = 0
    loss_scale: LossScale = field(default_factory=lambda: LossScale(1.0, 1.0, 1))
    best_step: int | None = None
    best_value: float | None = None
    evaluations_without_gain: int = 0
    data_sha256: str = ""
    base_path: str | None = None
    base_fingerprint: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """Return the state that `dataclasses.asdict` wrote, also if an older version with different fields did."""
        names = {entry.name for entry in fields(cls)}
        current = {name: value for name, value in values.items() if name in names}
        return cls(**(current | {"loss_scale": LossScale(**values["loss_scale"])}))


def initial_state(decision: Decision) -> LoopState:
    """Return the state of a run before its first step."""
    trainer = decision.config.trainer
    state = LoopState(data_sha256=decision.data.fingerprint)
    if decision.base:
        state.base_path, state.base_fingerprint = decision.base.path, decision.base.fingerprint
    if decision.config.hardware.precision == "fp16":
        state.loss_scale = LossScale(trainer.loss_scale_init, trainer.loss_scale_factor, trainer.loss_scale_window)
    return state


def resumed_state(
    decision: Decision, loop_state: dict[str, Any], stored_precision: str, forgets_best: bool
) -> LoopState:
    """Return the state of a run that continues from a checkpoint.

    Args:
        decision: of the continued run.
        loop_state: what the checkpoint holds.
        stored_precision: of the run that wrote it; a different precision begins with its own loss scale.
        forgets_best: whether the best evaluation so far is that of a different run, or of different rows.
    """
    initial, state = initial_state(decision), LoopState.from_dict(loop_state)
    state.data_sha256 = initial.data_sha256
    state.base_path, state.base_fingerprint = initial.base_path, initial.base_fingerprint
    if stored_precision != decision.config.hardware.precision:
        state.loss_scale = initial.loss_scale
    if forgets_best:
        state.best_step = state.best_value = None
        state.evaluations_without_gain = 0
    return state
