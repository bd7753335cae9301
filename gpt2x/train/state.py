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
        exploded_in_a_row: updates since the last one whose loss had not exploded.
        recent: loss and gradient norm of the last updates, as many as trainer.spike_window says.
        epoch: passes over the training rows that are complete.
        batch: batches of this epoch that have been used.
        units_seen: what counted in the loss: tokens, or a classifier's texts.
        loss_scale: of fp16; constantly 1 in other precisions.
        best_step: the step of the best evaluation.
        best_value: the best value of trainer.best_metric.
        bests: best value and its step of every metric of the validations, by name.
        evaluations_without_gain: evaluations in a row without a better value, for early stopping.
        data_sha256: hash of the training rows that `batch` refers to; "" in checkpoints of older versions.
        base_path: the frozen weights that adapters stand beside; None if there are none.
        base_fingerprint: hash of those weights.
        open_hook: what a signal broke off after the update `step`, such as Evaluate; it and the hooks after it are
            still to run. "": nothing.
        open_metrics: those of the update, for these hooks; as `gpt2x.tracking.jsonl.encoded` has them.
    """

    step: int = 0
    num_updates: int = 0
    skipped_in_a_row: int = 0
    exploded_in_a_row: int = 0
    recent: list[tuple[float, float]] = field(default_factory=list)
    epoch: int = 0
    batch: int = 0
    units_seen: int = 0
    loss_scale: LossScale = field(default_factory=lambda: LossScale(1.0, 1.0, 1))
    best_step: int | None = None
    best_value: float | None = None
    bests: dict[str, tuple[float, int]] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    data_sha256: str = ""
    base_path: str | None = None
    base_fingerprint: str = ""
    open_hook: str = ""
    open_metrics: dict[str, float | str] = field(default_factory=dict)

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
    decision: Decision, loop_state: dict[str, Any], stored: dict[str, Any], is_branch: bool, is_comparable: bool
) -> LoopState:
    """Return the state of a run that continues from a checkpoint.

    Args:
        decision: of the continued run.
        loop_state: what the checkpoint holds.
        stored: the configuration of the run that wrote it. A different precision begins with its own loss scale; under
            a different trainer.global_batch_size the epoch continues after the rows that were read.
        is_branch: whether the run continues in a new directory, where it has a best checkpoint of its own.
        is_comparable: whether later validations compare with those so far.
    """
    initial, state = initial_state(decision), LoopState.from_dict(loop_state)
    state.data_sha256 = initial.data_sha256
    state.base_path, state.base_fingerprint = initial.base_path, initial.base_fingerprint
    if stored["hardware"]["precision"] != decision.config.hardware.precision:
        state.loss_scale = initial.loss_scale
    batch = decision.config.trainer.batch
    state.batch = -(-state.batch * (stored["trainer"]["global_batch_size"] or batch) // batch)
    if is_branch or not is_comparable:
        state.best_step = state.best_value = None
        state.evaluations_without_gain = 0
    if not is_comparable:
        state.bests = {}
    return state
