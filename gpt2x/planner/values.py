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
        block_matrices: in the matrices of one block.
        matrices: in the matrices of all its blocks, and in the head's if it has one.
        states: whose optimizer states it keeps.
        masters: that it updates in a separate copy, from which the model's weights are gathered.
        head: in the head's matrix; 0 on all stages but the last.
        largest: in its largest tensor.
    """

    parameters: int
    block_matrices: int
    matrices: int
    states: int
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
    parameters = states = masters = block_matrices = head = largest = 0
    for name, logical_shape in shapes.items():
        shape = placement(name, logical_shape, model, coordinates).shape
        size, is_block = math.prod(shape), name.startswith("h.")
        copies = num_layers if is_block else 1
        num_states, num_masters = shard_values(shape, coordinates)
        parameters += copies * size
        states += copies * num_states
        masters += copies * num_masters
        largest = max(largest, size)
        if is_block and len(shape) == 2:
            block_matrices += size
        if coordinates.is_last_stage and name == head_name(model):
            head = size
    return ModelValues(parameters, block_matrices, num_layers * block_matrices + head, states, masters, head, largest)


@dataclass(frozen=True)
class TrainedValues:
    """The number of values that a rank updates.

    Attributes:
        parameters: whose gradients it computes.
        states: whose optimizer states it keeps.
        masters: that it updates in a separate copy, from which the model's weights are gathered.
        block_matrices: in the matrices of its blocks, adapters included.
        adapter_matrices: in the factors of adapters.
        trains_head: whether the head's matrix is trained.
        trains_embedding: whether the token embedding is trained.
    """

    parameters: int
    states: int
    masters: int
    block_matrices: int
    adapter_matrices: int
    trains_head: bool
    trains_embedding: bool


def trained_values(trainable: Trainable, coordinates: Coordinates, values: ModelValues) -> TrainedValues:
    """Count what the rank at `coordinates` updates; `values` are those of the whole model on it."""
    if trainable.is_whole:
        blocks = len(coordinates.layers(trainable.model.num_layers)) * values.block_matrices
        return TrainedValues(values.parameters, values.states, values.masters, blocks, 0, True, True)
    parameters = states = masters = blocks = 0
    trained = trainable.trained_placements(coordinates)
    for name, part in trained.items():
        size = math.prod(part.shape)
        num_states, num_masters = shard_values(part.shape, coordinates)
        parameters, states, masters = parameters + size, states + num_states, masters + num_masters
        blocks += size if name.startswith("h.") and len(part.shape) == 2 else 0
    adapters = blocks if trainable.is_adapter else 0
    trains_head = head_name(trainable.model) in trained
    return TrainedValues(parameters, states, masters, blocks, adapters, trains_head, "wte.weight" in trained)


def shard_values(shape: tuple[int, ...], coordinates: Coordinates) -> tuple[int, int]:
    """Return how many values of a local tensor the rank keeps optimizer states of, and how many it updates in a copy.

    A tensor whose rows cannot be divided into optimizer shards is updated as a whole, and needs no copy.
    """
    rows = shard_rows(shape, coordinates)
    if rows is None:
        return math.prod(shape), 0
    local = math.prod(shape) // shape[0] * len(rows)
    return local, local


def head_name(model: ModelConfig) -> str:
    """Return the tensor that the head multiplies by."""
    return "wte.weight" if model.tie_embeddings else "lm_head.weight"
