"""Bytes that a training step takes on one device: arithmetic on names and shapes (no mindspore).

The one estimate of memory: the panel of a run, the planner and the search use it. docs/planning.md derives it.

Legend: b sequences of a micro batch, T tokens, D hidden, N heads, F feed-forward, t tensor degree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.parallel.placement import holds, placement, placements, shard_rows
from gpt2x.runtime.memory import machine_memory_gb
from gpt2x.trainable import Trainable

FP32 = 4  # bytes
LOGITS_COPIES = 3  # fp32: log-probabilities, softmax and its gradient (gpt2x/ops.py, CrossEntropyKernel)
BUCKET_BYTES = 32 * 2**20  # gradients that are reduced together (gpt2x/parallel/gradient_reduction.py, BUCKET_ELEMENTS)
# What MindFormers' recipes leave MindSpore of a device of 64 GB (run_gpt2_13b_910b.yaml: max_device_memory 59GB); the
# rest is the driver's and HCCL's.
USABLE_SHARE = 59 / 64

CPU_PROCESS_BYTES = 0.7e9  # the interpreter and MindSpore, with the graph of a model without size


@dataclass(frozen=True)
class CpuUnits:
    """What a training step takes on the CPU, measured, since MindSpore 2.10 frees little there before a graph ends
    (docs/planning.md has the runs).

    Attributes:
        gradients: copies of the parameters in fp32; those of a tied table beside it are `tied`.
        sums: more of them where micro batches or a pipeline sum gradients up.
        frozen: copies of parameters that have no gradients.
        tied: copies of a table that is embedding and head, whose two gradients are summed up.
        logits: copies of whole logits in fp32.
        logits_chunk: the most values of logits that exist at a time; None: all.
        whole: fp32 values of b T D that a block keeps on every process of the tensor axis, and with `recompute=block`.
        split: those that the tensor axis splits.
        dropout: more of `whole` with dropout.
        forward: of a stage whose forward has a graph of its own.
        scores: values of b N T T that a block keeps.
        scores_dropout: more of them with dropout.
        adapter_dropout: values of what enters an adapter with dropout.
    """

    gradients: float
    sums: float
    frozen: float
    tied: float
    logits: float
    logits_chunk: int | None
    whole: float
    split: float
    dropout: float
    forward: float
    scores: float
    scores_dropout: float
    adapter_dropout: float


MINDSPORE = CpuUnits(
    gradients=3.2, sums=1.3, frozen=2.3, tied=0.0, logits=3.5, logits_chunk=None, whole=20.0, split=35.0, dropout=26.0,
    forward=12.0, scores=1.0, scores_dropout=15.0, adapter_dropout=17.0,
)  # fmt: skip
NATIVE = CpuUnits(
    gradients=1.1, sums=1.0, frozen=0.1, tied=2.0, logits=1.0, logits_chunk=2**25, whole=8.0, split=10.5, dropout=0.0,
    forward=9.0, scores=0.0, scores_dropout=0.0, adapter_dropout=3.0,
)  # fmt: skip


def cpu_units(hardware: HardwareConfig) -> CpuUnits:
    """Those of gpt2x's own kernels, or of MindSpore's operators."""
    return NATIVE if hardware.computes_natively else MINDSPORE


@dataclass(frozen=True)
class Memory:
    """Bytes by what they hold."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    logits: float = 0.0
    buffers: float = 0.0  # of communication

    @property
    def total(self) -> float:
        """All of it."""
        return sum(size for _, size in self)

    @property
    def largest(self) -> str:
        """The part that takes most."""
        return max(self, key=lambda part: part[1])[0]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)


@dataclass(frozen=True)
class Elements:
    """How many values a process has of the model.

    Attributes:
        parameters: of its stage, as it holds them: a share of what the tensor axis splits, copies of the rest.
        block_matrices: of one block, matrices alone.
        matrices: of all its blocks, and of the head where it has one.
        states: those whose optimizer states it keeps.
        masters: those that it updates in a copy of its own, of which the model's weights are gathered.
        head: of the head's matrix, on the last stage.
        largest: of its largest tensor.
    """

    parameters: int
    block_matrices: int
    matrices: int
    states: int
    masters: int
    head: int
    largest: int


def elements(model: ModelConfig, coordinates: Coordinates) -> Elements:
    """Count what a process holds; the blocks of a stage are alike, so one is counted."""
    num_layers = len(coordinates.layers(model.num_layers))
    first = coordinates.layers(model.num_layers).start
    shapes = {f"h.{first}.{name}": shape for name, shape in stats.block_shapes(model).items()}
    shapes |= {name: shape for name, shape in stats.outer_shapes(model).items() if holds(name, model, coordinates)}
    parameters = states = masters = block_matrices = head = largest = 0
    for name, logical in shapes.items():
        shape = placement(name, logical, model, coordinates).shape
        size, is_block = math.prod(shape), name.startswith("h.")
        rows = shard_rows(shape, coordinates)
        count = num_layers if is_block else 1
        parameters += count * size
        own = size if rows is None else size // shape[0] * len(rows)
        states += count * own
        masters += 0 if rows is None else count * own
        largest = max(largest, size)
        if is_block and len(shape) == 2:
            block_matrices += size
        if coordinates.is_last_stage and name == ("wte.weight" if model.tie_embeddings else "lm_head.weight"):
            head = size
    return Elements(parameters, block_matrices, num_layers * block_matrices + head, states, masters, head, largest)


@dataclass(frozen=True)
class TrainedElements:
    """How many values a process updates.

    Attributes:
        parameters: whose gradients it computes.
        states: whose optimizer states it keeps.
        masters: that it updates in a copy of its own, from which the model's weights are gathered.
        block_matrices: of the matrices of its blocks, adapters included.
        adapter_matrices: of the factors of adapters.
        is_head: whether the head's matrix is trained.
        is_table: whether the table of tokens is trained.
    """

    parameters: int
    states: int
    masters: int
    block_matrices: int
    adapter_matrices: int
    is_head: bool
    is_table: bool


def trained_elements(trainable: Trainable, coordinates: Coordinates, count: Elements) -> TrainedElements:
    """Count what a process updates; `count` is what it holds of the whole model."""
    num_layers = len(coordinates.layers(trainable.model.num_layers))
    if trainable.is_whole:
        blocks = num_layers * count.block_matrices
        return TrainedElements(count.parameters, count.states, count.masters, blocks, 0, True, True)
    head = "wte.weight" if trainable.model.tie_embeddings else "lm_head.weight"
    parameters = states = masters = blocks = 0
    parts = trainable.trained_placements(coordinates)
    for name, part in parts.items():
        size, rows = math.prod(part.shape), shard_rows(part.shape, coordinates)
        local = size if rows is None else size // part.shape[0] * len(rows)
        parameters, states = parameters + size, states + local
        masters += 0 if rows is None else local
        blocks += size if name.startswith("h.") and len(part.shape) == 2 else 0
    adapters = blocks if trainable.is_adapter else 0
    return TrainedElements(parameters, states, masters, blocks, adapters, head in parts, "wte.weight" in parts)


def usable_bytes(hardware: HardwareConfig, processes: int) -> float:
    """Memory of a device that a run can fill; a CPU's is shared by the processes on the machine."""
    if hardware.is_cpu:
        memory_gb = hardware.memory_gb or machine_memory_gb()
        return memory_gb * 1e9 / processes - CPU_PROCESS_BYTES
    assert hardware.memory_gb is not None
    return hardware.memory_gb * 1e9 * USABLE_SHARE


def weights_bytes(parallel: ParallelConfig, precision: str) -> int:
    """Bytes of a weight that the model computes with: fp32 in every layout and precision, cast where it is used.

    The one place to change if working weights follow the compute dtype.
    """
    return FP32


def accumulates(parallel: ParallelConfig, micro_batches: int) -> bool:
    """Whether gradients are summed in buffers of their own."""
    return micro_batches > 1 or parallel.pipeline > 1


def step_memory(
    model: ModelConfig,
    coordinates: Coordinates,
    hardware: HardwareConfig,
    *,
    num_states: int,
    micro_batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> Memory:
    """Estimate what a training step takes on the device of one process.

    Args:
        model: with its vocabulary known.
        place: the process.
        hardware: decides the precision, and whether memory is reused as on Ascend or measured as on the CPU.
        num_states: fp32 states that the optimizer keeps per value (`gpt2x.optim.registry.state_names`).
        micro_batch_size: sequences a forward pass.
        micro_batches: forward passes an update.
        seq_len: tokens a sequence.
    """
    parallel, count = coordinates.parallel, elements(model, coordinates)
    gradient_copies = 1.0 + accumulates(parallel, micro_batches)
    if hardware.is_cpu:
        units = cpu_units(hardware)
        gradient_copies = units.gradients + units.sums * accumulates(parallel, micro_batches)
        if model.tie_embeddings and not model.is_classifier and coordinates.is_first_stage:
            gradient_copies += units.tied * count.head / count.parameters
    return Memory(
        weights=weights_bytes(parallel, hardware.precision) * count.parameters
        + cast_bytes(count, coordinates, hardware),
        gradients=FP32 * count.parameters * gradient_copies,
        optimizer=FP32 * (num_states * count.states + count.masters),
        activations=activation_bytes(model, coordinates, hardware, micro_batch_size, micro_batches, seq_len),
        logits=logits_bytes(model, coordinates, hardware, micro_batch_size * seq_len),
        buffers=buffer_bytes(parallel, count),
    )


def logits_bytes(model: ModelConfig, coordinates: Coordinates, hardware: HardwareConfig, rows: int) -> float:
    """What the head's loss takes for the tokens of a micro batch."""
    parallel = coordinates.parallel
    if not coordinates.is_last_stage or model.is_classifier:
        return 0.0
    columns = stats.padded_vocab_size(model) / (parallel.tensor if parallel.vocab_parallel else 1)
    whole = rows * columns
    if not hardware.is_cpu:
        return FP32 * whole * LOGITS_COPIES
    units = cpu_units(hardware)
    if parallel.tensor > 1 and parallel.vocab_parallel:
        units = replace(units, logits=MINDSPORE.logits, logits_chunk=None)  # a share has no kernel of its own
    return FP32 * units.logits * (whole if units.logits_chunk is None else min(whole, units.logits_chunk))


def memory_of_trainable(
    full: Memory, trainable: Trainable, coordinates: Coordinates, hardware: HardwareConfig, rows: int
) -> Memory:
    """Return the estimate for what is trained, from that of training the whole model.

    Activations below the first trained tensor are counted, though their backward does not need them.

    Args:
        full: of training all weights (`step_memory`).
        trainable: what is trained.
        coordinates: of the process.
        hardware: whether memory is reused as on Ascend or measured as on the CPU.
        rows: tokens of a micro batch.
    """
    if trainable.is_whole:
        return full
    weights = sum(math.prod(part.shape) for part in placements(trainable.model, coordinates).values())
    parts = trainable.trained_placements(coordinates)
    trained = sum(math.prod(part.shape) for part in parts.values())
    buffers = min(full.buffers, 2 * FP32 * trained)
    is_cpu, units = hardware.is_cpu, cpu_units(hardware)
    if not trainable.is_adapter:
        share, frozen = trained / weights, weights - trained
        gradients = share * full.gradients + FP32 * (units.frozen if is_cpu else 0) * frozen
        return replace(full, gradients=gradients, optimizer=share * full.optimizer, buffers=buffers)
    kept = units.adapter_dropout * FP32 if is_cpu else FP32 + stats.BYTES[hardware.precision]  # mask and product
    return replace(
        full,
        weights=full.weights + FP32 * trained,
        gradients=FP32 * (units.frozen * weights + units.gradients * trained if is_cpu else trained),
        optimizer=full.optimizer * trained / weights,
        activations=full.activations + kept * rows * trainable.num_dropped_inputs(coordinates),
        buffers=buffers,
    )


def cast_bytes(count: Elements, coordinates: Coordinates, hardware: HardwareConfig) -> float:
    """Copies of the matrices in the compute dtype, which wait for their backward; recomputed blocks keep one's."""
    width = stats.BYTES[hardware.precision]
    if weights_bytes(coordinates.parallel, hardware.precision) == width:
        return 0.0
    if coordinates.parallel.recompute != "block":
        return width * count.matrices
    return width * (count.block_matrices + count.head)


def buffer_bytes(parallel: ParallelConfig, count: Elements) -> float:
    """What is sent and what is received in the reduction of gradients: a bucket, or the largest tensor, twice."""
    if parallel.data == 1:
        return 0.0
    return 2 * min(FP32 * count.parameters, max(BUCKET_BYTES, FP32 * count.largest))


def activation_bytes(
    model: ModelConfig,
    coordinates: Coordinates,
    hardware: HardwareConfig,
    micro_batch_size: int,
    micro_batches: int,
    seq_len: int,
) -> float:
    """Activations of one micro batch between its forward and backward, and inputs of a stage that wait for theirs."""
    parallel, is_cpu = coordinates.parallel, hardware.is_cpu
    num_layers = len(coordinates.layers(model.num_layers))
    tokens = micro_batch_size * seq_len / (parallel.tensor if parallel.sequence_parallel else 1)
    hidden = tokens * model.hidden_size * stats.BYTES[hardware.precision]
    of_block = cpu_block_bytes if is_cpu else block_bytes
    block = of_block(model, parallel, hardware, micro_batch_size, seq_len)
    kept = num_layers * block
    if parallel.recompute == "block" and not is_cpu:  # the inputs of all blocks, and one block; the CPU frees none
        kept = num_layers * hidden + block
    if is_cpu and not coordinates.is_last_stage:
        forward = cpu_units(hardware).forward * FP32 * micro_batch_size * seq_len * model.hidden_size
        kept += num_layers * forward / parallel.tensor
    if parallel.pipeline > 1:
        waiting = 0 if coordinates.is_first_stage else min(parallel.pipeline - coordinates.stage, micro_batches)
        kept += (waiting + 2) * hidden  # two messages under way
    return kept


def block_bytes(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, micro_batch_size: int, seq_len: int
) -> float:
    """Activations that a block keeps for its backward where memory is reused (Ascend).

    Korthikanti et al. (arXiv:2205.05198, section 4) with our kernels' kept outputs. Whole on every process of the
    tensor axis, in b T D: the rows of two layer norms and two dropout masks in fp32, two inputs of norms; two inputs
    of linears. Split: queries, keys, values and their mix in b T D; input, gate and output of GELU in b T F; attention
    weights and their dropout mask in fp32, b N T T each, unless the fused kernel or recomputation drops them.
    """
    width, t = stats.BYTES[hardware.precision], parallel.tensor
    rows = micro_batch_size * seq_len
    hidden, has_dropout = rows * model.hidden_size, model.dropout > 0
    own = hidden * ((2 + 2 * has_dropout) * FP32 + 2 * width)
    inputs = hidden * 2 * width  # whole under sequence parallelism too: the tokens are gathered before
    split = hidden * 4 * width + rows * stats.ffn_size(model) * 3 * width
    if parallel.recompute != "attention" and not stats.uses_flash_attention(model, hardware):
        scores = micro_batch_size * model.num_heads * seq_len**2
        split += scores * FP32 * (1 + (stats.attention_dropout(model) > 0))
    return own / (t if parallel.sequence_parallel else 1) + inputs + split / t


def cpu_block_bytes(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, micro_batch_size: int, seq_len: int
) -> float:
    """Bytes that a block takes on the CPU, by measured units; the precision hardly matters, since MindSpore's kernels
    compute in fp32.
    """
    t, units = parallel.tensor, cpu_units(hardware)
    hidden = micro_batch_size * seq_len * model.hidden_size
    scores = micro_batch_size * model.num_heads * seq_len**2
    whole = units.whole + units.dropout * (model.dropout > 0)
    split = units.split * hidden
    split += (units.scores + units.scores_dropout * (stats.attention_dropout(model) > 0)) * scores
    return FP32 * (whole * hidden / (t if parallel.sequence_parallel else 1) + split / t)
