"""Stage 4: what is trained, and the frozen weights that adapters stand beside."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.errors import UserError
from gpt2x.lora.adapter import fingerprint
from gpt2x.runtime.role import Role
from gpt2x.train.decision.source import RunSource
from gpt2x.trainable import Trainable, trainable_of


@dataclass(frozen=True)
class FrozenBase:
    """The weights that adapters stand beside, to which their checkpoints refer.

    Attributes:
        path: the directory, absolute.
        fingerprint: of the weights' values; "" on other processes than the main one of each node.
    """

    path: str
    fingerprint: str


def decide_trainable(
    config: TrainConfig, source: RunSource, model: ModelConfig, role: Role
) -> tuple[Trainable, FrozenBase | None]:
    """Return what is trained, and the frozen base of adapters; None if all weights are in the checkpoint.

    Raises:
        UserError: the frozen weights differ from those of the resumed run, or the adapter's head from the task's.
    """
    trainable = trainable_of(config, model)
    if not trainable.is_adapter:
        return trainable, None
    assert source.weights is not None
    check_head(config, source, model)
    base = FrozenBase(
        str(source.weights.path.absolute()),
        fingerprint(source.weights.weights()) if role.rank == 0 else "",
    )
    if source.resumption:
        check_same_base(config, base, source.resumption.saved.loop_state["base_fingerprint"])
    return trainable, base


def check_same_base(config: TrainConfig, base: FrozenBase, stored: str) -> None:
    """Reject frozen weights that differ from those that the adapters were trained beside.

    Raises:
        UserError: naming both hashes.
    """
    if base.fingerprint and base.fingerprint != stored:
        raise UserError(
            f"resume={config.resume}: the frozen weights at {base.path} are not those that the adapter was trained "
            f"beside (sha256 {stored[:12]}, here {base.fingerprint[:12]}). Give load=DIR with the original weights."
        )


def check_head(config: TrainConfig, source: RunSource, model: ModelConfig) -> None:
    """Reject an adapter whose classifier head is for different classes than the task's.

    Raises:
        UserError: naming both lists of classes.
    """
    adapter = source.adapter
    if adapter is None or adapter.head is None:
        return
    labels = adapter.adapted(model).labels
    if labels != model.labels:
        raise UserError(
            f"adapters=[{config.adapters[0]}] has a head for {', '.join(labels or [])}, but "
            f"task={config.task.name} on dataset={config.dataset.name} is for "
            f"{', '.join(model.labels or ['language modeling'])}. Give a data set with these classes."
        )
