"""How many values one rank holds of the model, and how many of them it trains: arithmetic on names and shapes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2x.config import ModelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.parallel.placement import holds, placement, shard_rows
from gpt2x.trainable import Trainable


@dataclass(frozen=True)
class ModelValues:
    """The number of values that a rank holds of the whole model, as if all of it were trained.

    Attributes:
        parameters: in its stage; tensors that the tensor axis does not split are counted in full.
        block: in one block.
        block_matrices: in the matrices of one block.
        matrices: in the matrices of all its blocks, and in the head's if it has one.
        kept: whose fp32 weights it keeps: all, or of blocks its rows with `zero_stage=3`.
        states: whose optimizer states it keeps.
        block_states: of these, those in blocks.
        masters: that it updates in a separate copy, from which the model's weights are gathered.
        head: in the head's matrix; 0 on all stages but the last.
        largest: in its largest tensor.
    """

    parameters: int
    block: int
    block_matrices: int
    matrices: int
    kept: int
    states: int
    block_states: int
    masters: int
    head: int
    largest: int


def model_values(model: ModelConfig, coordinates: Coordinates) -> ModelValues:
    """Count the values of the model on the rank at `coordinates`.

    All blocks of a stage have the same shapes, so only one is counted.
    """
    num_layers = len(coordinates.layers(model.num_layers))
    first = coordinates.layers(model.num_layers).start
    shapes = {f"h.{first}.{name}": shape for name, shape in stats.block_shapes(model).items()}
    shapes |= {name: shape for name, shape in stats.outer_shapes(model).items() if holds(name, model, coordinates)}
    parameters = kept = states = block_states = masters = block = block_matrices = head = largest = 0
    for name, logical_shape in shapes.items():
        shape = placement(name, logical_shape, model, coordinates).shape
        size, is_block = math.prod(shape), name.startswith("h.")
        copies = num_layers if is_block else 1
        num_states, num_masters = shard_values(name, shape, coordinates)
        parameters += copies * size
        kept += copies * (num_states if splits_weights(name, coordinates) else size)
        states += copies * num_states
        block_states += copies * num_states if is_block else 0
        masters += copies * num_masters
        largest = max(largest, size)
        block += size if is_block else 0
        block_matrices += size if is_block and len(shape) == 2 else 0
        if coordinates.is_last_stage and name == head_name(model):
            head = size
    matrices = num_layers * block_matrices + head
    return ModelValues(parameters, block, block_matrices, matrices, kept, states, block_states, masters, head, largest)


@dataclass(frozen=True)
class TrainedValues:
    """The number of values that a rank updates.

    Attributes:
        parameters: whose gradients it computes.
        states: whose optimizer states it keeps.
        masters: that it updates in a separate copy, from which the model's weights are gathered.
        in_blocks: in its blocks, adapters included.
        block_states: of these, those whose optimizer states it keeps.
        block_matrices: in the matrices of its blocks, adapters included.
        adapter_matrices: in the factors of adapters.
        trains_head: whether the head's matrix is trained.
        trains_embedding: whether the token embedding is trained.
    """

    parameters: int
    states: int
    masters: int
    in_blocks: int
    block_states: int
    block_matrices: int
    adapter_matrices: int
    trains_head: bool
    trains_embedding: bool


def trained_values(trainable: Trainable, coordinates: Coordinates, values: ModelValues) -> TrainedValues:
    """Count what the rank at `coordinates` updates; `values` are those of the whole model on it."""
    if trainable.is_whole:
        layers = len(coordinates.layers(trainable.model.num_layers))
        blocks = (layers * values.block, values.block_states, layers * values.block_matrices)
        return TrainedValues(values.parameters, values.states, values.masters, *blocks, 0, True, True)
    parameters = states = masters = in_blocks = block_states = matrices = 0
    trained = trainable.trained_placements(coordinates)
    for name, part in trained.items():
        size, is_block = math.prod(part.shape), name.startswith("h.")
        num_states, num_masters = shard_values(name, part.shape, coordinates)
        parameters, states, masters = parameters + size, states + num_states, masters + num_masters
        in_blocks += size if is_block else 0
        block_states += num_states if is_block else 0
        matrices += size if is_block and len(part.shape) == 2 else 0
    adapters = matrices if trainable.is_adapter else 0
    trains_head = head_name(trainable.model) in trained
    return TrainedValues(
        parameters, states, masters, in_blocks, block_states, matrices, adapters, trains_head, "wte.weight" in trained
    )


def splits_weights(name: str, coordinates: Coordinates) -> bool:
    """Return whether a process keeps only its rows of a tensor's weights: a block's with `zero_stage=3`."""
    return coordinates.parallel.splits_weights and name.startswith("h.")


def shard_values(name: str, shape: tuple[int, ...], coordinates: Coordinates) -> tuple[int, int]:
    """Return how many values of a local tensor the rank keeps optimizer states of, and how many it updates in a copy.

    A tensor whose rows cannot be divided into optimizer shards is updated as a whole, and needs no copy. With
    `zero_stage=3` the rows of blocks are padded until they divide, and the rank's rows are the weights themselves.
    """
    is_weight = splits_weights(name, coordinates)
    rows = shard_rows(shape, coordinates, pads=is_weight)
    if rows is None:
        return math.prod(shape), 0
    local = math.prod(shape) // shape[0] * len(rows)
    return local, 0 if is_weight else local


def head_name(model: ModelConfig) -> str:
    """Return the tensor that the head multiplies by."""
    return "wte.weight" if model.tie_embeddings else "lm_head.weight"
