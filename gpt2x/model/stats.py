"""A model's tensors, parameters and FLOPs, from its configuration only; imports no mindspore."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

from gpt2x.config import HardwareConfig, ModelConfig

EMBEDDINGS = ("wte.weight", "wpe.weight")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
HEAD = "score.weight"  # of a classifier


def ffn_size(model: ModelConfig) -> int:
    """Return the width of the feed-forward layer."""
    return model.ffn_size or 4 * model.hidden_size


def padded_vocab_size(model: ModelConfig) -> int:
    """Return the rows of the embedding: vocab_size, rounded up to a multiple of pad_vocab_multiple."""
    assert model.vocab_size is not None
    return -(-model.vocab_size // model.pad_vocab_multiple) * model.pad_vocab_multiple


def block_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one transformer block's tensors by their name within the block."""
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
    """Return the shapes of all logical tensors; names as in Hugging Face's modeling_gpt2.py without `transformer.`."""
    outer = outer_shapes(model)
    shapes = {name: outer.pop(name) for name in EMBEDDINGS}
    block = block_shapes(model)
    for layer in range(model.num_layers):
        shapes |= {f"h.{layer}.{name}": shape for name, shape in block.items()}
    return shapes | outer


def outer_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors before and after the blocks."""
    assert model.vocab_size is not None
    hidden = model.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (model.vocab_size, hidden),
        "wpe.weight": (model.max_seq_len, hidden),
        "ln_f.weight": (hidden,),
        "ln_f.bias": (hidden,),
    }
    if model.labels:
        shapes[HEAD] = (len(model.labels), hidden)
    elif not model.tie_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return shapes


def attention_dropout(model: ModelConfig) -> float:
    """Return the dropout rate on attention weights."""
    return model.dropout if model.attention_dropout is None else model.attention_dropout


def uses_flash_attention(model: ModelConfig, hardware: HardwareConfig) -> bool:
    """Return whether training runs the flash kernel, with or without dropout on attention weights."""
    return hardware.has_flash_kernel_of(model.num_heads, model.hidden_size // model.num_heads)


def num_params(model: ModelConfig) -> int:
    """Return the number of parameters: a tied head counts once, padding rows of the vocabulary do not count."""
    return sum(math.prod(shape) for shape in tensor_shapes(model).values())


def num_matmul_params(model: ModelConfig) -> int:
    """Return the parameters that a token is multiplied by: all matrices except embeddings, and the LM head."""
    matrices = sum(math.prod(shape) for shape in block_shapes(model).values() if len(shape) == 2)
    assert model.vocab_size is not None
    head = 0 if model.labels else model.vocab_size * model.hidden_size
    return model.num_layers * matrices + head


def forward_flops_per_token(model: ModelConfig, seq_len: int) -> float:
    """Return the floating-point operations per token of a forward pass, at a mean causal context of seq_len / 2.

    2 per parameter, and 2 x 2 x D x T/2 per layer for scores and weighted sums (Kaplan et al.,
    arXiv:2001.08361, table 1; PaLM, arXiv:2204.02311, appendix B, which counts the whole T x T square).
    """
    attention = model.num_layers * 2 * 2 * model.hidden_size * seq_len / 2
    return 2.0 * num_matmul_params(model) + attention


def depth(name: str, num_layers: int) -> int:
    """Return the depth of a tensor: 0 for embeddings (and a tied head), from 1 for blocks, num_layers + 1 after."""
    if name.startswith("h."):
        return 1 + int(name.split(".")[1])
    return 0 if name in EMBEDDINGS else num_layers + 1


def train_flops_per_token(model: ModelConfig, seq_len: int, trained: Collection[str] | None = None) -> float:
    """Return the operations per token of forward and backward: three times the forward pass, without recomputation.

    Args:
        model: its vocab_size is not None.
        seq_len: tokens of a sequence.
        trained: the tensors that have gradients; None: all. Blocks before the first of them only cost their forward
            pass; the others pass gradients through.
    """
    forward = forward_flops_per_token(model, seq_len)
    if trained is None:
        return 3 * forward
    shapes, layers = tensor_shapes(model), model.num_layers
    passed = 1 - max(0, min(depth(name, layers) for name in trained) - 1) / layers  # share of the blocks
    head = None if model.labels else "wte.weight" if model.tie_embeddings else "lm_head.weight"
    multiplied = [name for name in trained if len(shapes[name]) == 2 and (name.startswith("h.") or name == head)]
    of_head = forward_flops_per_token(replace(model, num_layers=0), seq_len)
    of_attention = forward - 2.0 * num_matmul_params(
        model
    )  # without weights: backward has only gradients of inputs, at twice the cost
    of_inputs = of_head + passed * (forward - of_head + of_attention)
    return forward + of_inputs + 2.0 * sum(math.prod(shapes[name]) for name in multiplied)


def keeps_head(model: ModelConfig, loaded: ModelConfig) -> bool:
    """Return whether the head of a loaded classifier serves `model`: it has the same classes, or as many without names.

    transformers' run_glue.py also keeps a head without names, and takes the order of the data.
    """
    if model.labels is None or loaded.labels is None:
        return False
    return model.labels == loaded.labels or (loaded.has_unnamed_labels and len(loaded.labels) == len(model.labels))
