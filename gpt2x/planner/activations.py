"""Activations that a training step keeps on one device, and measured units of the CPU (no mindspore).

Legend: b sequences per micro batch, T tokens per sequence, D hidden size, N heads, F feed-forward size,
t tensor degree, L blocks of the stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats

FP32 = 4  # bytes


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
    hidden = tokens * model.hidden_size * stats.BYTES[hardware.tensor_precision]
    block = (cpu_block_bytes if is_cpu else block_bytes)(model, parallel, hardware, micro_batch_size, seq_len)
    if parallel.splits_weights:
        return sharded_activation_bytes(coordinates, hardware, num_layers, hidden, block, micro_batches)
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


def sharded_activation_bytes(
    coordinates: Coordinates,
    hardware: HardwareConfig,
    num_layers: int,
    hidden: float,
    block: float,
    micro_batches: int,
) -> float:
    """Return the bytes of activations under full sharding: inputs of all blocks, and one block that is computed again.

    Args:
        coordinates: of the rank.
        hardware: the CPU keeps what each of its graphs has allocated, and has a forward and a backward graph per slot.
        num_layers: L.
        hidden: bytes of b T D.
        block: bytes of all activations of one block.
        micro_batches: forward passes per update.
    """
    parallel = coordinates.parallel
    in_flight = min(parallel.pipeline - coordinates.stage, micro_batches)  # forward passes that wait for their backward
    messages = 2 if parallel.pipeline > 1 else 0
    kept = (in_flight * (num_layers + 1) + messages) * hidden
    if hardware.is_cpu:
        forward = cpu_units(hardware).forward * hidden / parallel.tensor
        return kept + parallel.num_slots(hardware.is_cpu) * (block + forward)
    return kept + block


def block_bytes(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, micro_batch_size: int, seq_len: int
) -> float:
    """Return the bytes of activations that a block keeps for its backward pass on a device that reuses memory (Ascend).

    Korthikanti et al. (arXiv:2205.05198, section 4), with the outputs that gpt2x's kernels keep.
    Replicated over the tensor axis, b T D each: rows of two layer norms and two dropout masks in fp32, the inputs of
    two layer norms and of two linears.
    Split by the tensor axis: queries, keys, values and attention output, b T D each; input, gate and output of GELU,
    b T F each; attention weights and their dropout mask in fp32, b N T T each, unless the fused kernel or recomputation
    drops them. The fused kernel takes its dropout mask as one bit for each weight.
    """
    width, t = stats.BYTES[hardware.tensor_precision], parallel.tensor
    rows = micro_batch_size * seq_len
    hidden, has_dropout = rows * model.hidden_size, model.dropout > 0
    replicated = hidden * ((2 + 2 * has_dropout) * FP32 + 2 * width)
    inputs = hidden * 2 * width  # in full under sequence parallelism too: the tokens are gathered first
    split = hidden * 4 * width + rows * stats.ffn_size(model) * 3 * width
    scores, drops = micro_batch_size * model.num_heads * seq_len**2, stats.attention_dropout(model) > 0
    if stats.uses_flash_attention(model, hardware):
        split += scores * drops // 8
    elif parallel.recompute != "attention":
        split += scores * FP32 * (1 + drops)
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
