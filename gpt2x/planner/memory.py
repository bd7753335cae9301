"""Bytes that a training step takes on one device: arithmetic on shapes (no mindspore).

`step_memory` is the only estimate of memory: the start panel, the plan and the search use it. docs/planning.md derives
it and compares it with measurements.

Legend: b sequences per micro batch, T tokens per sequence, D hidden size, N heads, F feed-forward size,
t tensor degree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.parallel.placement import placements
from gpt2x.planner.values import ModelValues, model_values
from gpt2x.runtime.memory import machine_memory_gb
from gpt2x.trainable import Trainable

FP32 = 4  # bytes
LOGITS_COPIES = 3  # fp32: log-probabilities, softmax and its gradient (gpt2x/ops, cross entropy)
BUCKET_BYTES = (
    32 * 2**20
)  # gradients that are reduced in one collective (gpt2x/parallel/gradient_reduction.py, BUCKET_ELEMENTS)
# MindFormers' recipes give MindSpore 59 GB of a device of 64 GB (run_gpt2_13b_910b.yaml: max_device_memory); the driver
# and HCCL use the rest.
USABLE_FRACTION = 59 / 64

CPU_PROCESS_BYTES = 0.7e9  # the interpreter and MindSpore, with the graph of the smallest model


@dataclass(frozen=True)
class CpuUnits:
    """How many fp32 copies of each quantity a training step keeps on the CPU.

    The numbers are measured, because MindSpore 2.10 frees little memory on the CPU before a graph ends
    (docs/planning.md has the runs).

    Attributes:
        gradients: copies of the parameters.
        sums: additional copies of the parameters if micro batches or a pipeline accumulate gradients.
        frozen: copies of the parameters that have no gradients.
        tied: additional copies of a tied embedding, whose two gradients are added.
        logits: copies of the logits.
        logits_chunk: the largest number of logits that exist at the same time; None means all.
        replicated: copies of b T D per block that every rank of the tensor axis keeps, also with `recompute=block`.
        split: copies of b T D per block that the tensor axis splits.
        dropout: additional copies of b T D per block with dropout, replicated.
        forward: copies of b T D per block of a stage whose forward pass is a separate graph.
        scores: copies of b N T T that a block keeps.
        scores_dropout: additional copies of b N T T with dropout.
        adapter_dropout: copies of the inputs of adapters that pass a dropout.
    """

    gradients: float
    sums: float
    frozen: float
    tied: float
    logits: float
    logits_chunk: int | None
    replicated: float
    split: float
    dropout: float
    forward: float
    scores: float
    scores_dropout: float
    adapter_dropout: float


MINDSPORE = CpuUnits(
    gradients=3.2, sums=1.3, frozen=2.3, tied=0.0, logits=3.5, logits_chunk=None, replicated=20.0, split=35.0,
    dropout=26.0, forward=12.0, scores=1.0, scores_dropout=15.0, adapter_dropout=17.0,
)  # fmt: skip
NATIVE = CpuUnits(
    gradients=1.1, sums=1.0, frozen=0.1, tied=2.0, logits=1.0, logits_chunk=2**25, replicated=8.0, split=10.5,
    dropout=0.0, forward=9.0, scores=0.0, scores_dropout=0.0, adapter_dropout=3.0,
)  # fmt: skip


def cpu_units(hardware: HardwareConfig) -> CpuUnits:
    """Return the units of gpt2x's kernels, or those of MindSpore's operators if the kernels do not run."""
    return NATIVE if hardware.computes_natively else MINDSPORE


@dataclass(frozen=True)
class Memory:
    """Bytes per kind of content."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0  # for communication

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
    assert hardware.memory_gb is not None
    return hardware.memory_gb * 1e9 * USABLE_FRACTION


def weights_bytes(parallel: ParallelConfig, precision: str) -> int:
    """Return the bytes per weight: the model keeps fp32 weights in every layout and precision, and casts them for use.

    This is the only place to change if the weights ever follow the compute dtype.
    """
    return FP32


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
    """
    model, parallel = trainable.model, coordinates.parallel
    values, tokens = model_values(model, coordinates), micro_batch_size * seq_len
    memory = Memory(
        weights=weights_bytes(parallel, hardware.precision) * values.parameters
        + cast_bytes(values, coordinates, hardware),
        gradients=FP32 * values.parameters * gradient_copies(model, coordinates, hardware, values, micro_batches),
        optimizer=FP32 * (num_states * values.states + values.masters),
        activations=activation_bytes(model, coordinates, hardware, micro_batch_size, micro_batches, seq_len),
        logits=logits_bytes(model, coordinates, hardware, tokens),
        buffers=buffer_bytes(parallel, values),
    )
    return memory if trainable.is_whole else memory_of_part(memory, trainable, coordinates, hardware, tokens)


def gradient_copies(
    model: ModelConfig, coordinates: Coordinates, hardware: HardwareConfig, values: ModelValues, micro_batches: int
) -> float:
    """Return how many fp32 copies of the parameters gradients take."""
    is_accumulating = accumulates(coordinates.parallel, micro_batches)
    if not hardware.is_cpu:
        return 1.0 + is_accumulating
    units = cpu_units(hardware)
    copies = units.gradients + units.sums * is_accumulating
    if model.tie_embeddings and not model.is_classifier and coordinates.is_first_stage:
        copies += units.tied * values.head / values.parameters
    return copies


def logits_bytes(model: ModelConfig, coordinates: Coordinates, hardware: HardwareConfig, tokens: int) -> float:
    """Return the bytes of the logits and their loss, for the `tokens` of a micro batch."""
    parallel = coordinates.parallel
    if not coordinates.is_last_stage or model.is_classifier:
        return 0.0
    columns = stats.padded_vocab_size(model) / (parallel.tensor if parallel.vocab_parallel else 1)
    logits = tokens * columns
    if not hardware.is_cpu:
        return FP32 * logits * LOGITS_COPIES
    units = cpu_units(hardware)
    if parallel.tensor > 1 and parallel.vocab_parallel:
        units = replace(units, logits=MINDSPORE.logits, logits_chunk=None)  # gpt2x has no kernel for split logits
    return FP32 * units.logits * (logits if units.logits_chunk is None else min(logits, units.logits_chunk))


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
    dropout = units.adapter_dropout * FP32 if is_cpu else FP32 + stats.BYTES[hardware.precision]  # mask and product
    return replace(
        full,
        weights=full.weights + FP32 * trained,
        gradients=FP32 * (units.frozen * weights + units.gradients * trained if is_cpu else trained),
        optimizer=full.optimizer * trained / weights,
        activations=full.activations + dropout * tokens * trainable.num_dropped_inputs(coordinates),
        buffers=buffers,
    )


def cast_bytes(values: ModelValues, coordinates: Coordinates, hardware: HardwareConfig) -> float:
    """Return the bytes of matrices in the compute dtype, which are kept until their backward pass.

    With `recompute=block` only those of one block and of the head exist at the same time.
    """
    width = stats.BYTES[hardware.precision]
    if weights_bytes(coordinates.parallel, hardware.precision) == width:
        return 0.0
    if coordinates.parallel.recompute != "block":
        return width * values.matrices
    return width * (values.block_matrices + values.head)


def buffer_bytes(parallel: ParallelConfig, values: ModelValues) -> float:
    """Return the bytes of gradient reduction's send and receive buffer: a bucket each, or the largest tensor."""
    if parallel.data == 1:
        return 0.0
    return 2 * min(FP32 * values.parameters, max(BUCKET_BYTES, FP32 * values.largest))


def activation_bytes(
    model: ModelConfig,
    coordinates: Coordinates,
    hardware: HardwareConfig,
    micro_batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> float:
    """Return the bytes of one micro batch's activations, and of the stage inputs that wait for their backward pass."""
    parallel, is_cpu = coordinates.parallel, hardware.is_cpu
    num_layers = len(coordinates.layers(model.num_layers))
    tokens = micro_batch_size * seq_len / (parallel.tensor if parallel.sequence_parallel else 1)
    hidden = tokens * model.hidden_size * stats.BYTES[hardware.precision]
    block = (cpu_block_bytes if is_cpu else block_bytes)(model, parallel, hardware, micro_batch_size, seq_len)
    kept = num_layers * block
    if parallel.recompute == "block" and not is_cpu:  # on the CPU nothing is freed
        # the inputs of all blocks, and one block in full
        kept = num_layers * hidden + block
    if is_cpu and not coordinates.is_last_stage:
        forward = cpu_units(hardware).forward * FP32 * micro_batch_size * seq_len * model.hidden_size
        kept += num_layers * forward / parallel.tensor
    if parallel.pipeline > 1:
        waiting = 0 if coordinates.is_first_stage else min(parallel.pipeline - coordinates.stage, micro_batches)
        kept += (waiting + 2) * hidden  # two messages in transit
    return kept


def block_bytes(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, micro_batch_size: int, seq_len: int
) -> float:
    """Return the bytes of activations that a block keeps for its backward pass on a device that reuses memory (Ascend).

    Korthikanti et al. (arXiv:2205.05198, section 4), with the outputs that gpt2x's kernels keep.
    Replicated over the tensor axis, b T D each: rows of two layer norms and two dropout masks in fp32, the inputs of
    two layer norms and of two linears.
    Split by the tensor axis: queries, keys, values and attention output, b T D each; input, gate and output of GELU,
    b T F each; attention weights and their dropout mask in fp32, b N T T each, unless the fused kernel or recomputation
    drops them.
    """
    width, t = stats.BYTES[hardware.precision], parallel.tensor
    rows = micro_batch_size * seq_len
    hidden, has_dropout = rows * model.hidden_size, model.dropout > 0
    replicated = hidden * ((2 + 2 * has_dropout) * FP32 + 2 * width)
    inputs = hidden * 2 * width  # in full under sequence parallelism too: the tokens are gathered first
    split = hidden * 4 * width + rows * stats.ffn_size(model) * 3 * width
    if parallel.recompute != "attention" and not stats.uses_flash_attention(model, hardware):
        scores = micro_batch_size * model.num_heads * seq_len**2
        split += scores * FP32 * (1 + (stats.attention_dropout(model) > 0))
    return replicated / (t if parallel.sequence_parallel else 1) + inputs + split / t


def cpu_block_bytes(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, micro_batch_size: int, seq_len: int
) -> float:
    """Return the bytes of a block on the CPU, by measured units.

    The precision hardly matters, because MindSpore's CPU kernels compute in fp32.
    """
    t, units = parallel.tensor, cpu_units(hardware)
    hidden = micro_batch_size * seq_len * model.hidden_size
    scores = micro_batch_size * model.num_heads * seq_len**2
    replicated = units.replicated + units.dropout * (model.dropout > 0)
    split = units.split * hidden
    split += (units.scores + units.scores_dropout * (stats.attention_dropout(model) > 0)) * scores
    return FP32 * (replicated * hidden / (t if parallel.sequence_parallel else 1) + split / t)
