"""The operators that MindSpore has on Ascend alone, written for the CPU as its documentation of 2.10 states them.

`patched(monkeypatch)` puts them in place of those that `gpt2x.ops.ascend` calls, so that the whole Ascend branch
computes on the CPU. Each takes the documented arguments in their order and rejects what the documentation excludes.
Gradients are those that MindSpore derives from these formulas. What the kernels compute is not known by this.

Legend: B batch, N heads, S1 queries, S2 keys, D head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from gpt2x.config import HardwareConfig
from gpt2x.ops import ascend

HALF = (ms.float16, ms.bfloat16)
BIT_NUMBERS = Tensor(np.arange(8, dtype=np.int32))


@dataclass
class AscendOnCPU(HardwareConfig):
    """A CPU whose nets are made by the backend `ascend`."""

    @property
    def backend(self) -> str:
        """Return the name of the backend."""
        return "ascend"


def hardware(precision: str) -> AscendOnCPU:
    """Return a CPU that claims to have the flash kernel."""
    return AscendOnCPU(
        name="ascend_on_cpu", device_target="CPU", precision=precision, memory_gb=None, peak_tflops=None,
        devices_per_node=1, flash_attention=True, source="test",
    )  # fmt: skip


def require(holds, message):
    """Reject arguments; graphs know no `assert` with a message of their own."""
    if not holds:
        raise ValueError(message)


def discarded(attn_mask, sparse_mode, shape):
    """Return which scores (B, N, S1, S2) are discarded: bool, of a shape that spreads to it."""
    batch, heads, queries, keys = shape
    if sparse_mode == 0:
        if attn_mask is None:
            return ops.zeros((1, 1, queries, keys), ms.bool_)
        allowed = ((batch, heads, queries, keys), (batch, 1, queries, keys), (queries, keys))
        require(attn_mask.shape in allowed, "sparse_mode 0: a full mask")
        return ops.cast(attn_mask, ms.bool_)
    require(sparse_mode == 2, "leftUpCausal, or the default")
    require(attn_mask.shape == (2048, 2048), "sparse_mode 2: the optimized mask")
    rows, columns = ops.arange(queries).reshape(-1, 1), ops.arange(keys).reshape(1, -1)
    return ops.logical_and(columns > rows, ops.cast(attn_mask[0, 1], ms.bool_))  # the mask's own entry says: discard


def retained(drop_mask):
    """drop_mask (B, N, S1, S2 / 8) uint8 -> (B, N, S1, S2) fp32: 1 where its bit is 1, from the lowest bit on."""
    bytes_of = ops.cast(drop_mask, ms.int32).reshape((*drop_mask.shape, 1))
    bits = ops.bitwise_and(ops.bitwise_right_shift(bytes_of, BIT_NUMBERS), 1)
    return ops.cast(bits, ms.float32).reshape((*drop_mask.shape[:-1], -1))


def flash_attention_score(
    query, key, value, head_num, real_shift=None, drop_mask=None, padding_mask=None, attn_mask=None, prefix=None,
    actual_seq_qlen=None, actual_seq_kvlen=None, keep_prob=1.0, scalar_value=1.0, pre_tokens=2147483647,
    next_tokens=2147483647, inner_precise=0, input_layout="BSH", sparse_mode=0,
):  # fmt: skip
    """Dropout(Softmax(Mask(scale * (query @ key^T), attn_mask)), keep_prob) @ value, in fp32 until the end."""
    require(
        query.dtype in HALF and key.dtype == query.dtype and value.dtype == query.dtype, "fp16 or bf16, all the same"
    )
    require(input_layout == "BNSD", "the layout that gpt2x uses")
    require(real_shift is None and padding_mask is None and prefix is None, "not used")
    require(actual_seq_qlen is None and actual_seq_kvlen is None, "for TND alone")
    require(pre_tokens == 2147483647 and next_tokens == 2147483647 and inner_precise == 0, "left out")
    batch, heads, queries, size = query.shape
    keys = key.shape[2]
    require(heads == head_num and head_num <= 256, "N1 is head_num, at most 256")
    require(size % 16 == 0 and size <= 512, "D is a multiple of 16, at most 512")
    require(attn_mask is None or attn_mask.dtype in (ms.bool_, ms.uint8), "a mask of bool or uint8")
    require((drop_mask is None) == (keep_prob == 1.0) and 0 < keep_prob <= 1, "a mask if and only if something drops")
    wide_query, wide_key, wide_value = (ops.cast(x, ms.float32) for x in (query, key, value))
    scores = ops.matmul(wide_query, wide_key.transpose(0, 1, 3, 2)) * scalar_value  # (B, N, S1, S2)
    hidden = ops.cast(discarded(attn_mask, sparse_mode, (batch, heads, queries, keys)), ms.float32)
    weights = ops.softmax(scores + hidden * -1e30, -1)
    if drop_mask is not None:
        require(drop_mask.dtype == ms.uint8 and keys % 8 == 0, "uint8, of keys that 8 divides")
        require(drop_mask.shape == (batch, heads, queries, keys // 8), "a bit for each weight")
        weights = weights * retained(drop_mask) / keep_prob
    return ops.cast(ops.matmul(weights, wide_value), query.dtype)


def layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5):
    """(x - E[x]) / sqrt(Var[x] + eps) * weight + bias over the last dims, which have `normalized_shape`."""
    require(tuple(normalized_shape) == input.shape[-1:], "the last dim")
    require(weight.shape == input.shape[-1:] and bias.shape == input.shape[-1:], "of normalized_shape")
    centred = input - input.mean(-1, keep_dims=True)
    variance = (centred * centred).mean(-1, keep_dims=True)
    return centred / ops.sqrt(variance + eps) * weight + bias


def embedding(input, weight, padding_idx=None, max_norm=None, norm_type=2.0, scale_grad_by_freq=False):
    """Rows of `weight` at `input`: (*input.shape, weight.shape[1]) in weight's dtype."""
    require(input.dtype in (ms.int32, ms.int64), "int32 or int64")
    require(len(weight.shape) == 2, "a matrix")
    require(padding_idx is None and max_norm is None and not scale_grad_by_freq, "left out")
    return ops.gather(weight, input, 0)


def gelu_ext(input, approximate="none"):
    """x Phi(x) with the distribution function of the normal distribution."""
    require(approximate == "none", "the tanh form is another operator here")
    wide = ops.cast(input, ms.float32)
    return ops.cast(wide * 0.5 * (1.0 + ops.erf(wide * math.sqrt(0.5))), input.dtype)


REFERENCES = {
    "flash_attention_score": flash_attention_score,
    "layer_norm": layer_norm,
    "embedding": embedding,
    "gelu_ext": gelu_ext,
}


def patched(monkeypatch) -> None:
    """Let `gpt2x.ops.ascend` call the references until the test ends."""
    for name, reference in REFERENCES.items():
        assert callable(getattr(ascend, name))
        monkeypatch.setattr(ascend, name, reference)
