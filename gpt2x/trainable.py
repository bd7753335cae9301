"""What a run trains: the whole model, some of its tensors, or adapters beside frozen weights.

`trainable_of` reads the configuration once. Everything that depends on what is trained asks the `Trainable`: which
tensors a rank keeps in checkpoints and which of them it updates, FLOPs, the planner's memory and communication, and the
start panel. `gpt2x.train.initial_values` has the values that training begins with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from gpt2x.config import LoraConfig, ModelConfig, TrainConfig
from gpt2x.config.layout import Coordinates
from gpt2x.config.patterns import trained_tensors
from gpt2x.lora import shapes
from gpt2x.model import stats
from gpt2x.parallel.placement import Placement, placements

if TYPE_CHECKING:
    from gpt2x.parallel.mesh import Mesh


class Trainable(Protocol):
    """What a run trains."""

    @property
    def model(self) -> ModelConfig:
        """The model; its vocabulary size is set."""

    @property
    def checkpoint_group(self) -> str:
        """The group of tensors that checkpoints hold beside optimizer states: weights or adapter."""

    @property
    def is_whole(self) -> bool:
        """Whether every tensor of the model is trained, and nothing else."""

    @property
    def is_adapter(self) -> bool:
        """Whether checkpoints hold adapters only, and refer to the frozen weights of `load=`."""

    def stored_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return the placements of what checkpoints hold, on the process at `coordinates`."""

    def trained_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return the placements of what is updated, on the process at `coordinates`; a part of what is stored."""

    def of_model(self, model: ModelConfig) -> Trainable:
        """Return the same choice of what is trained, for a different model."""

    def num_values(self) -> int:
        """Return the number of trained values; copies in a layout count once."""

    def flops_per_token(self, seq_len: int) -> float:
        """Return the floating-point operations of forward and backward per token of a sequence of `seq_len`."""

    def has_dropout(self) -> bool:
        """Return whether training draws random numbers."""

    def num_dropped_inputs(self, coordinates: Coordinates) -> int:
        """Return the number of input columns of all adapters with dropout, on the process at `coordinates`."""

    def description(self) -> str | None:
        """Return what is trained in words, for the start panel; None if it is the whole model."""

    def attach(self, net: Any, mesh: Mesh) -> None:
        """Add what is trained to the net, if it is not among its parameters."""


@dataclass(frozen=True)
class WholeModel:
    """Every tensor of the model."""

    model: ModelConfig
    checkpoint_group: ClassVar[str] = "weights"
    is_whole: ClassVar[bool] = True
    is_adapter: ClassVar[bool] = False

    def names(self) -> list[str]:
        """Return the trained tensors in the order of the model."""
        return list(stats.tensor_shapes(self.model))

    def stored_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return all tensors of the model, trained or frozen."""
        return placements(self.model, coordinates)

    def trained_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return the trained tensors in the order of the model."""
        stored = self.stored_placements(coordinates)
        return {name: stored[name] for name in self.names() if name in stored}

    def of_model(self, model: ModelConfig) -> Trainable:
        """Return the same choice for a different model."""
        return replace(self, model=model)

    def num_values(self) -> int:
        """Return the number of values of the trained tensors."""
        tensor_shapes = stats.tensor_shapes(self.model)
        return sum(math.prod(tensor_shapes[name]) for name in self.names())

    def flops_per_token(self, seq_len: int) -> float:
        """Return the model FLOPs per token; see `gpt2x.model.stats.train_flops_per_token`."""
        return stats.train_flops_per_token(self.model, seq_len, None if self.is_whole else self.names())

    def has_dropout(self) -> bool:
        """Return whether any dropout rate of the model is above 0."""
        model = self.model
        return any((model.dropout, model.embedding_dropout, model.attention_dropout))

    def num_dropped_inputs(self, coordinates: Coordinates) -> int:
        """Return 0: there are no adapters."""
        return 0

    def description(self) -> str | None:
        """Return None: the whole model is trained."""
        return None

    def attach(self, net: Any, mesh: Mesh) -> None:
        """Leave the net as it is."""


@dataclass(frozen=True)
class SelectedTensors(WholeModel):
    """The tensors that match no pattern of `trainer.frozen`; the others keep their loaded values.

    Attributes:
        frozen: the patterns.
    """

    frozen: tuple[str, ...] = ()
    is_whole: ClassVar[bool] = False

    def names(self) -> list[str]:
        """Return the trained tensors in the order of the model.

        Raises:
            UserError: a pattern matches nothing, or nothing is left to train.
        """
        return trained_tensors(list(self.frozen), stats.tensor_shapes(self.model))

    def description(self) -> str | None:
        """Return the number of trained values, and the frozen patterns."""
        fraction = self.num_values() / stats.num_params(self.model)
        return f"{self.num_values():,} ({fraction:.2%}): all but {', '.join(self.frozen)}"


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters beside frozen weights, and a classifier's head.

    Attributes:
        lora: the configuration of the adapters; its rank is not None.
    """

    model: ModelConfig
    lora: LoraConfig
    checkpoint_group: ClassVar[str] = shapes.GROUP
    is_whole: ClassVar[bool] = False
    is_adapter: ClassVar[bool] = True

    def stored_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return the factors of the adapters, and a classifier's head."""
        return shapes.trained_placements(self.lora, self.model, coordinates)

    def trained_placements(self, coordinates: Coordinates) -> dict[str, Placement]:
        """Return what is stored: all of it is trained."""
        return self.stored_placements(coordinates)

    def of_model(self, model: ModelConfig) -> Trainable:
        """Return the same adapters for a different model."""
        return replace(self, model=model)

    def num_values(self) -> int:
        """Return the number of values of the factors and the head."""
        return shapes.num_trainable(self.lora, self.model)

    def flops_per_token(self, seq_len: int) -> float:
        """Return the FLOPs per token. The frozen weights get no gradient, which saves a third of their work."""
        return shapes.train_flops_per_token(self.lora, self.model, seq_len)

    def has_dropout(self) -> bool:
        """Return whether any dropout rate of the model or of the adapters is above 0."""
        return self.lora.dropout > 0 or WholeModel(self.model).has_dropout()

    def num_dropped_inputs(self, coordinates: Coordinates) -> int:
        """Return the number of input columns of all adapters at `coordinates`; 0 if their dropout is off."""
        if self.lora.dropout == 0:
            return 0
        parts = self.stored_placements(coordinates)
        return sum(part.shape[0] for name, part in parts.items() if name.endswith(shapes.A))

    def description(self) -> str | None:
        """Return the number of trained values, the rank and the targets."""
        fraction = self.num_values() / stats.num_params(self.model)
        return f"{self.num_values():,} ({fraction:.2%}): rank {self.lora.rank} on {', '.join(self.lora.targets)}"

    def attach(self, net: Any, mesh: Mesh) -> None:
        """Put adapters without values beside the linears that `lora.targets` names, and freeze the net."""
        from gpt2x.lora.cells import add_adapters  # brings mindspore, which the planner does without

        add_adapters(net, self.model, self.lora, mesh)


def trainable_of(config: TrainConfig, model: ModelConfig) -> Trainable:
    """Return what `config` trains of `model`, whose vocabulary size is set."""
    if config.lora.rank is not None:
        return Adapters(model, config.lora)
    if config.trainer.frozen:
        return SelectedTensors(model, tuple(config.trainer.frozen))
    return WholeModel(model)
