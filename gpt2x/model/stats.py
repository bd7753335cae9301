"""What a model weighs and costs, from its configuration alone: nothing is built (floor 1; no mindspore)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gpt2x.config import ModelConfig

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def ffn_size(model: ModelConfig) -> int:
    """Width of the feed-forward layer."""
    return model.ffn_size or 4 * model.hidden_size


def padded_vocab_size(model: ModelConfig) -> int:
    """Rows of the embedding: vocab_size, rounded up to a multiple of pad_vocab_multiple."""
    assert model.vocab_size is not None
    return -(-model.vocab_size // model.pad_vocab_multiple) * model.pad_vocab_multiple


def block_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of one transformer block's tensors by their name within the block."""
    hidden, ffn = model.hidden_size, ffn_size(model)
    linears = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, ffn),
        "mlp.c_proj": (ffn, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for norm in ("ln_1", "ln_2"):
        shapes |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[1],)}
    return shapes


def tensor_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all logical tensors; names as in Hugging Face's modeling_gpt2.py without `transformer.`."""
    assert model.vocab_size is not None
    hidden = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (model.vocab_size, hidden),
        "wpe.weight": (model.max_seq_len, hidden),
    }
    block = block_shapes(model)
    for layer in range(model.num_layers):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}
    if not model.tie_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return shapes


def num_params(model: ModelConfig) -> int:
    """Parameters, a tied head counted once, padding of the vocabulary not counted."""
    return sum(math.prod(shape) for shape in tensor_shapes(model).values())


def num_matmul_params(model: ModelConfig) -> int:
    """Parameters that a token is multiplied with: all matrices but the embeddings, and the head."""
    matrices = sum(math.prod(shape) for shape in block_shapes(model).values() if len(shape) == 2)
    assert model.vocab_size is not None
    return model.num_layers * matrices + model.vocab_size * model.hidden_size


def forward_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Floating-point operations of a forward pass a token, at a mean causal context of seq_len / 2.

    2 a parameter, and 2 x 2 x D x T/2 a layer for scores and their mix (Kaplan et al., arXiv:2001.08361, table 1;
    PaLM, arXiv:2204.02311, appendix B, which counts the whole T x T square).
    """
    attention = model.num_layers * 2 * 2 * model.hidden_size * seq_len / 2
    return 2.0 * num_matmul_params(model) + attention


def train_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Forward and backward: three times the forward pass; recomputation is not counted (model FLOPs)."""
    return 3 * forward_flops_per_token(model, seq_len)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step on one device."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for name in ("weights", "gradients", "optimizer", "activations", "logits"):
            yield name, getattr(self, name)


# Measured on the CPU, in units of B T D and B N T T fp32 elements a block (docs/design/ops.md): outputs kept for the
# gradient, and index tables that MindSpore's kernels keep for transposes and for the masks of dropout.
CPU_HIDDEN_UNITS, CPU_SCORE_UNITS = 12, 5
CPU_HIDDEN_DROPOUT_UNITS, CPU_SCORE_DROPOUT_UNITS = 36, 15


def train_memory(
    model: ModelConfig,
    *,
    micro_batch_size: int,
    seq_len: int,
    precision: str,
    accumulates: bool,
    recompute: str = "none",
    keeps_scores: bool = True,
    reuses_memory: bool = True,
) -> MemoryEstimate:
    """Estimate a training step's memory.

    Weights, gradients (a second buffer when micro batches accumulate) and AdamW's two states are fp32. Where memory
    is reused, activations follow Korthikanti et al. (arXiv:2205.05198), equation 1, with our kernels' kept outputs:
    in units of B T D elements a block keeps 2 fp32 layer-norm rows, qkv (3), attention output, inputs and sums (4)
    and two fp32 dropout masks, in units of B T F the input, gate and output of GELU; scores unless a fused kernel
    or recompute drops them.
    """
    params, width = num_params(model), BYTES[precision]
    rows = micro_batch_size * seq_len
    hidden, scores = rows * model.hidden_size, micro_batch_size * model.num_heads * seq_len**2
    has_dropout = model.dropout > 0
    block = hidden * ((2 + 2 * has_dropout) * 4 + 8 * width) + rows * ffn_size(model) * 3 * width
    if keeps_scores and recompute != "attention":
        block += scores * 4 * (1 + has_dropout)
    kept = model.num_layers * (hidden * width if recompute == "block" else block)
    activations = kept + (block if recompute == "block" else 0)
    copies_of_logits, copies_of_gradients = 2, 1 + accumulates
    if not reuses_memory:
        hidden_units = CPU_HIDDEN_UNITS + CPU_HIDDEN_DROPOUT_UNITS * has_dropout
        score_units = CPU_SCORE_UNITS + CPU_SCORE_DROPOUT_UNITS * has_dropout
        activations = model.num_layers * 4 * (hidden_units * hidden + score_units * scores)
        copies_of_logits, copies_of_gradients = 3, 3 + accumulates
    return MemoryEstimate(
        weights=4 * params,
        gradients=4 * params * copies_of_gradients,
        optimizer=8 * params,
        activations=activations,
        logits=copies_of_logits * 4 * rows * padded_vocab_size(model),
    )
