"""Bytes that a training step takes on one device: arithmetic on shapes (no mindspore).

`step_memory` is the only estimate of memory: the start panel, the plan and the search use it. docs/planning.md derives
it and compares it with measurements.

`gpt2x.planner.activations` has the activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainerConfig
from gpt2x.config.layout import Coordinates, world_size
from gpt2x.model import stats
from gpt2x.parallel.placement import placements
from gpt2x.planner.activations import FP32, MINDSPORE, activation_bytes, cpu_units
from gpt2x.planner.values import ModelValues, model_values, trained_values
from gpt2x.runtime.memory import machine_memory_gb
from gpt2x.trainable import Trainable

LOGITS_COPIES = 3  # fp32: log-probabilities, softmax and its gradient (gpt2x/ops, cross entropy)
BUCKET_BYTES = 32 * 2**20  # gradients reduced in one collective (gpt2x/parallel/gradient_reduction.py, BUCKET_ELEMENTS)

# Each communicator has a buffer for sending and one for receiving, of HCCL_BUFFSIZE=200 MB by default (CANN's reference
# of environment variables).
COMMUNICATOR_BYTES = 2 * 200 * 2**20

CPU_PROCESS_BYTES = 0.7e9  # the interpreter and MindSpore, with a graph of SMALL_GRAPH blocks
SMALL_GRAPH = 8
# Of each further block in a graph: 17 MB in one process, 20 MB with replicas, measured with 10 to 40 blocks of 16
CPU_GRAPH_BYTES = 18e6


@dataclass(frozen=True)
class Memory:
    """Bytes per kind of content."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0  # of gradients and weights that are sent and received
    communicators: float = 0.0  # HCCL's own buffers
    graphs: float = 0.0  # what a deep model's graph takes to compile on the CPU
    checkpoint: float = 0.0  # the copy that is written beside training, on the CPU; elsewhere the host has it

    @property
    def total(self) -> float:
        """The sum of all kinds."""
        return sum(size for _, size in self)

    @property
    def largest(self) -> str:
        """The kind that takes the most."""
        return max(self, key=lambda kind: kind[1])[0]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)


def usable_bytes(hardware: HardwareConfig, processes: int) -> float:
    """Return the bytes of a device that a run can fill; processes on one machine share the memory of its CPU."""
    if hardware.is_cpu:
        memory_gb = hardware.memory_gb or machine_memory_gb()
        return memory_gb * 1e9 / processes - CPU_PROCESS_BYTES
    return hardware.usable_gb * 1e9


def num_communicators(coordinates: Coordinates) -> int:
    """Return how many groups of processes `gpt2x.parallel.mesh` creates on a rank, that of all processes included."""
    parallel = coordinates.parallel
    shards, ranks = parallel.shards, world_size(parallel)
    sizes = [parallel.data, parallel.tensor, shards * parallel.tensor * parallel.pipeline]  # the last: gradients' norm
    if shards > 1:
        sizes += [shards, parallel.data // shards]
    if parallel.pipeline > 1 and (coordinates.is_first_stage or coordinates.is_last_stage):
        sizes.append(2)  # the tied embedding
    return (ranks > 1) + sum(1 < size < ranks for size in sizes)


def accumulates(parallel: ParallelConfig, micro_batches: int) -> bool:
    """Return True if gradients are summed in separate buffers."""
    return micro_batches > 1 or parallel.pipeline > 1


def step_memory(
    trainable: Trainable,
    coordinates: Coordinates,
    hardware: HardwareConfig,
    *,
    num_states: int,
    micro_batch_size: int,
    micro_batches: int,
    seq_len: int,
    copies_checkpoint: bool = False,
) -> Memory:
    """Estimate the memory of a training step on the device of one rank.

    Args:
        trainable: what is trained, of a model with its vocabulary.
        coordinates: of the rank.
        hardware: decides the precision, and whether memory is reused (Ascend) or follows measured units (CPU).
        num_states: fp32 states that the optimizer keeps per value (`gpt2x.optim.registry.state_names`).
        micro_batch_size: sequences per forward pass.
        micro_batches: forward passes per update.
        seq_len: tokens per sequence.
        copies_checkpoint: checkpoints are written beside training (`copies_checkpoint`).
    """
    model, parallel = trainable.model, coordinates.parallel
    values, tokens = model_values(model, coordinates), micro_batch_size * seq_len
    activations = activation_bytes(model, coordinates, hardware, micro_batch_size, micro_batches, seq_len)
    logits = logits_bytes(model, coordinates, hardware, tokens)
    communicators = 0.0 if hardware.is_cpu else COMMUNICATOR_BYTES * num_communicators(coordinates)
    is_copied = copies_checkpoint and hardware.is_cpu
    checkpoint = checkpoint_bytes(trainable, coordinates, values, num_states) if is_copied else 0.0
    if parallel.splits_weights:
        memory = sharded_memory(trainable, coordinates, hardware, values, num_states)
        activations += adapter_bytes(trainable, coordinates, hardware, tokens)
        return replace(
            memory, activations=activations, logits=logits, communicators=communicators, checkpoint=checkpoint
        )
    memory = Memory(
        weights=FP32 * values.parameters + cast_bytes(values, coordinates, hardware),
        gradients=FP32 * values.parameters * gradient_copies(model, coordinates, hardware, values, micro_batches),
        optimizer=FP32 * (num_states * values.states + values.masters),
        activations=activations,
        logits=logits,
        buffers=buffer_bytes(parallel, values),
        communicators=communicators,
        graphs=graph_bytes(len(coordinates.layers(model.num_layers))) if hardware.is_cpu else 0.0,
        checkpoint=checkpoint,
    )
    return memory if trainable.is_whole else memory_of_part(memory, trainable, coordinates, hardware, tokens)


def copies_checkpoint(trainer: TrainerConfig) -> bool:
    """Return True if checkpoints are written while training continues; that of the last update needs no copy."""
    is_best = trainer.keep_best and trainer.eval_every_steps is not None
    return trainer.checkpoint_async and (trainer.checkpoint_every_steps is not None or is_best)


def checkpoint_bytes(trainable: Trainable, coordinates: Coordinates, values: ModelValues, num_states: int) -> float:
    """Return what a rank writes of a checkpoint: of the copies of a value on several replicas, one is written."""
    trained = trained_values(trainable, coordinates, values)
    stored = trained.parameters if trainable.is_adapter else values.kept
    is_first, has_states = coordinates.data == 0, coordinates.data < coordinates.parallel.shards
    return FP32 * (stored * is_first + num_states * trained.states * has_states)


def graph_bytes(blocks: int) -> float:
    """Return what a graph of this many blocks takes on the CPU above the one that `CPU_PROCESS_BYTES` includes."""
    return CPU_GRAPH_BYTES * max(0, blocks - SMALL_GRAPH)


def gradient_copies(
    model: ModelConfig, coordinates: Coordinates, hardware: HardwareConfig, values: ModelValues, micro_batches: int
) -> float:
    """Return how many fp32 copies of the parameters gradients take.

    With `zero_stage=2` the sums over micro batches are those of the rank's shard; the gradients of a backward pass are
    whole.
    """
    summed = 1.0 if accumulates(coordinates.parallel, micro_batches) else 0.0
    if coordinates.parallel.splits_gradients:
        summed *= values.states / values.parameters
    if not hardware.is_cpu:
        return 1.0 + summed
    units = cpu_units(hardware)
    copies = units.gradients + units.sums * summed
    if model.tie_embeddings and not model.is_classifier and coordinates.is_first_stage:
        copies += units.tied * values.head / values.parameters
    return copies


def sharded_memory(
    trainable: Trainable,
    coordinates: Coordinates,
    hardware: HardwareConfig,
    values: ModelValues,
    num_states: int,
) -> Memory:
    """Return the memory of full sharding without activations and logits (docs/design/full_sharding.md).

    Weights: fp32, of blocks the rank's rows; one slot or two, whose matrices are in the compute dtype; the head's cast.
    Gradients: fp32 sums, of blocks the rank's rows; those of what is outside of the blocks, and of one block, from one
    backward pass. Buffers: the bucket that a gather receives, and the packed gradients that a scatter sends.
    """
    width, parallel = stats.BYTES[hardware.tensor_precision], coordinates.parallel
    layers = len(coordinates.layers(trainable.model.num_layers))
    trained = trained_values(trainable, coordinates, values)
    adapters = trained if trainable.is_adapter else None
    slot: float = width * values.block_matrices + FP32 * (values.block - values.block_matrices)
    slot += width * adapters.in_blocks / layers if adapters else 0
    outside = trained.parameters - trained.in_blocks
    gradient = trained.in_blocks / layers  # values of one block's
    scattered = FP32 if parallel.reduce_dtype == "fp32" else width
    outside_buffers = 2 * min(FP32 * outside, max(BUCKET_BYTES, FP32 * values.largest))
    slots = parallel.num_slots(hardware.is_cpu)
    copies = cpu_units(hardware).gradients * slots if hardware.is_cpu else 1.0  # each graph on the CPU has its own
    sums = FP32 * (outside + trained.block_states)
    cleared = sums if hardware.is_cpu else 0.0  # the zeros that clear the sums; the CPU keeps them until the graph ends
    return Memory(
        weights=FP32 * (values.kept + (adapters.block_states if adapters else 0))
        + slots * slot
        + (width * values.head if width != FP32 else 0),
        gradients=sums + cleared + FP32 * outside + copies * width * gradient,
        optimizer=FP32 * (num_states * trained.states + trained.masters),
        buffers=copies * (slot + scattered * gradient) + outside_buffers,
    )


def adapter_bytes(trainable: Trainable, coordinates: Coordinates, hardware: HardwareConfig, tokens: int) -> float:
    """Return the bytes of activations that adapters add: dropped inputs."""
    if not trainable.is_adapter:
        return 0.0
    width = stats.BYTES[hardware.tensor_precision]
    each = cpu_units(hardware).adapter_dropout * FP32 if hardware.is_cpu else FP32 + width
    inputs: float = trainable.num_dropped_inputs(coordinates)
    if coordinates.parallel.splits_weights:  # one block's exist at a time
        inputs /= len(coordinates.layers(trainable.model.num_layers))
    return each * tokens * inputs


def logits_bytes(model: ModelConfig, coordinates: Coordinates, hardware: HardwareConfig, tokens: int) -> float:
    """Return the bytes of the logits and their loss, for the `tokens` of a micro batch."""
    parallel = coordinates.parallel
    if not coordinates.is_last_stage or model.is_classifier:
        return 0.0
    columns = stats.padded_vocab_size(model) / (parallel.tensor if parallel.vocab_parallel else 1)
    num_logits = tokens * columns
    if not hardware.is_cpu:
        return FP32 * num_logits * LOGITS_COPIES
    units = cpu_units(hardware)
    if parallel.tensor > 1 and parallel.vocab_parallel:
        units = replace(units, logits=MINDSPORE.logits, logits_chunk=None)  # gpt2x has no kernel for split logits
    at_once = num_logits if units.logits_chunk is None else min(num_logits, units.logits_chunk)
    return FP32 * units.logits * at_once  # units.logits: copies


def memory_of_part(
    full: Memory, trainable: Trainable, coordinates: Coordinates, hardware: HardwareConfig, tokens: int
) -> Memory:
    """Reduce the estimate for the whole model to a run that trains some tensors or adapters.

    Activations below the first trained tensor are counted, although no backward pass needs them.

    Args:
        full: memory of training all weights.
        trainable: what is trained.
        coordinates: of the rank.
        hardware: as in `step_memory`.
        tokens: of a micro batch.
    """
    weights = sum(math.prod(part.shape) for part in placements(trainable.model, coordinates).values())
    parts = trainable.trained_placements(coordinates)
    trained = sum(math.prod(part.shape) for part in parts.values())
    buffers = min(full.buffers, 2 * FP32 * trained)
    is_cpu, units = hardware.is_cpu, cpu_units(hardware)
    if not trainable.is_adapter:
        fraction, frozen = trained / weights, weights - trained
        gradients = fraction * full.gradients + FP32 * (units.frozen if is_cpu else 0) * frozen
        return replace(full, gradients=gradients, optimizer=fraction * full.optimizer, buffers=buffers)
    return replace(
        full,
        weights=full.weights + FP32 * trained,
        gradients=FP32 * (units.frozen * weights + units.gradients * trained if is_cpu else trained),
        optimizer=full.optimizer * trained / weights,
        activations=full.activations + adapter_bytes(trainable, coordinates, hardware, tokens),
        buffers=buffers,
    )


def cast_bytes(values: ModelValues, coordinates: Coordinates, hardware: HardwareConfig) -> float:
    """Return the bytes of matrices in the compute dtype, which are kept until their backward pass.

    With `recompute=block` only those of one block and of the head exist at the same time.
    """
    width = stats.BYTES[hardware.tensor_precision]
    if width == FP32:
        return 0.0
    if coordinates.parallel.recompute != "block":
        return width * values.matrices
    return width * (values.block_matrices + values.head)


def buffer_bytes(parallel: ParallelConfig, values: ModelValues) -> float:
    """Return the bytes of gradient reduction's send and receive buffer: a bucket each, or the largest tensor."""
    if parallel.data == 1:
        return 0.0
    return 2 * min(FP32 * values.parameters, max(BUCKET_BYTES, FP32 * values.largest))
