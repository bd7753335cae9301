"""The operators that MindSpore has on Ascend alone, written for the CPU as its documentation of 2.10 states them.

`patched(monkeypatch)` puts them in place of those that `gpt2x.ops.ascend` calls, so that the whole Ascend branch
computes on the CPU. Each takes the documented arguments in their order and rejects what the documentation excludes.
Gradients are those that MindSpore derives from these formulas. What the kernels compute is not known by this.

Legend: B batch, N heads, S1 queries, S2 keys, D head dim; TND: T1 queries and T2 keys of all sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mindspore as ms
import numpy as np
import pytest
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
    rows, columns = ops.arange(queries).reshape(-1, 1), ops.arange(keys).reshape(1, -1)
    return left_up_causal(attn_mask, sparse_mode, rows, columns)


def left_up_causal(attn_mask, sparse_mode, rows, columns):
    """Return what the lower triangle from the upper left corner discards of scores with these numbers: bool."""
    require(sparse_mode == 2, "leftUpCausal, or the default")
    require(attn_mask.shape == (2048, 2048), "sparse_mode 2: the optimized mask")
    return ops.logical_and(columns > rows, ops.cast(attn_mask[0, 1], ms.bool_))  # the mask's own entry says: discard


def numbers_in_sequences(ends, tokens):
    """Return of each of `tokens` tokens its sequence and its place within it, int32 (tokens,), and the lengths (S,).

    ends (S,): the cumulative sum of the lengths.
    """
    ends = ops.cast(ends, ms.int32)
    begins = ops.cat((ops.zeros((1,), ms.int32), ends[:-1]))
    places = ops.cast(ops.arange(tokens), ms.int32)
    sequence = (places.reshape(-1, 1) >= ends.reshape(1, -1)).astype(ms.int32).sum(-1)
    return sequence, places - ops.gather(begins, ops.clamp(sequence, 0, ends.shape[0] - 1), 0), ends - begins


def discarded_between_sequences(attn_mask, sparse_mode, query_ends, key_ends, queries, keys):
    """Layout TND: what is discarded of all scores (T1, T2), and whether the two lists are as documented."""
    require(query_ends.dtype in (ms.int32, ms.int64) and key_ends.dtype == query_ends.dtype, "whole numbers")
    require(query_ends.shape == key_ends.shape and query_ends.shape[0] <= 1024, "as many, at most 1024")
    query_sequence, rows, query_lengths = numbers_in_sequences(query_ends, queries)
    key_sequence, columns, key_lengths = numbers_in_sequences(key_ends, keys)
    other = query_sequence.reshape(-1, 1) != key_sequence.reshape(1, -1)
    causal = left_up_causal(attn_mask, sparse_mode, rows.reshape(-1, 1), columns.reshape(1, -1))
    is_valid = (query_lengths >= 0).all()  # non-decreasing
    is_valid = ops.logical_and(is_valid, (key_lengths > 0).all())  # "0 should not exist in list_seq_k"
    is_valid = ops.logical_and(is_valid, query_ends[-1] == queries)
    return ops.logical_or(other, causal), ops.logical_and(is_valid, key_ends[-1] == keys)


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
    """Dropout(Softmax(Mask(scale * (query @ key^T), attn_mask)), keep_prob) @ value, in fp32 until the end.

    Lists of TND that the documentation excludes give NaN, since a graph cannot raise for values.
    """
    require(
        query.dtype in HALF and key.dtype == query.dtype and value.dtype == query.dtype, "fp16 or bf16, all the same"
    )
    require(input_layout in ("BSH", "TND"), "the layouts that gpt2x uses")
    require(real_shift is None and padding_mask is None and prefix is None, "not used")
    require(pre_tokens == 2147483647 and inner_precise == 0, "left out")
    require(0 < head_num <= 256, "N1 is at most 256")
    require(attn_mask is None or attn_mask.dtype in (ms.bool_, ms.uint8), "a mask of bool or uint8")
    require((drop_mask is None) == (keep_prob == 1.0) and 0 < keep_prob <= 1, "a mask if and only if something drops")
    is_packed = input_layout == "TND"
    require((actual_seq_qlen is None) != is_packed and (actual_seq_kvlen is None) != is_packed, "for TND alone")
    require(next_tokens == (0 if is_packed else 2147483647), "0 for TND, else left out")
    wide = [ops.cast(x, ms.float32) for x in (query, key, value)]
    if is_packed:
        require(query.shape[1:] == key.shape[1:] and query.shape[1] == head_num, "(T1, N, D) and (T2, N, D)")
        wide_query, wide_key, wide_value = (x.transpose(1, 0, 2).expand_dims(0) for x in wide)  # (1, N, T, D)
    else:
        require(query.shape[-1] % head_num == 0, "H1 is N1 * D")
        wide_query, wide_key, wide_value = (
            x.reshape(x.shape[0], x.shape[1], head_num, -1).transpose(0, 2, 1, 3) for x in wide
        )  # (B, N, S, D)
    batch, heads, queries, size = wide_query.shape
    keys = wide_key.shape[2]
    require(size % 16 == 0 and size <= 512, "D is a multiple of 16, at most 512")
    scores = ops.matmul(wide_query, wide_key.transpose(0, 1, 3, 2)) * scalar_value  # (B, N, S1, S2)
    is_valid = None
    if is_packed:
        hidden, is_valid = discarded_between_sequences(
            attn_mask, sparse_mode, actual_seq_qlen, actual_seq_kvlen, queries, keys
        )
    else:
        hidden = discarded(attn_mask, sparse_mode, (batch, heads, queries, keys))
    weights = ops.softmax(scores + ops.cast(hidden, ms.float32) * -1e30, -1)
    if drop_mask is not None:
        require(not is_packed, "in TND the size of the mask depends on the lengths")
        require(drop_mask.dtype == ms.uint8 and keys % 8 == 0, "uint8, of keys that 8 divides")
        require(drop_mask.shape == (batch, heads, queries, keys // 8), "a bit for each weight")
        weights = weights * retained(drop_mask) / keep_prob
    attended = ops.matmul(weights, wide_value).transpose(0, 2, 1, 3)  # (B, S1, N, D)
    if is_packed:
        attended = ops.where(is_valid, attended, ops.full_like(attended, float("nan")))
    return ops.cast(attended.reshape(query.shape), query.dtype)


def sort(input, *, dim=-1, descending=False, stable=False):
    """Values in ascending order, and their indices."""
    require(dim == -1 and not descending and not stable, "left out")
    return ops.sort(input)


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


def adamw(var, m, v, max_v, gradient, step, lr, beta1, beta2, decay, eps, amsgrad=False, maximize=False):
    """AdamW in place. CANN's formula counts its steps from 1; MindSpore's optimizers give it one less."""
    require(step.dtype == ms.int64, "int64 or fp32")
    require(not amsgrad and not maximize, "left out")
    require(var.dtype == m.dtype and m.dtype == v.dtype and v.dtype == gradient.dtype, "all the same")
    mean = beta1 * m + (1 - beta1) * gradient
    mean_square = beta2 * v + (1 - beta2) * gradient * gradient
    steps = ops.cast(step, ms.float32)
    corrected = mean / (1 - ops.pow(beta1, steps)), mean_square / (1 - ops.pow(beta2, steps))
    change = lr * corrected[0] / (ops.sqrt(corrected[1]) + eps) + lr * decay * var
    ops.assign(m, mean)
    ops.assign(v, mean_square)
    return ops.assign(var, var - change)


def bitwise_and(input, other):
    """Bits that are 1 in both; `other` may be a number."""
    require(input.dtype == ms.int32, "what gpt2x calls it for")
    return ops.bitwise_and(input, other)


def bitwise_xor(input, other):
    """Bits that are 1 in one of both; `other` may be a number."""
    require(input.dtype == ms.int32, "what gpt2x calls it for")
    return ops.bitwise_xor(input, other)


REFERENCES = {
    "adamw": adamw,
    "bitwise_and": bitwise_and,
    "bitwise_xor": bitwise_xor,
    "flash_attention_score": flash_attention_score,
    "sort": sort,
    "layer_norm": layer_norm,
    "embedding": embedding,
    "gelu_ext": gelu_ext,
}


def patched(monkeypatch) -> None:
    """Let `gpt2x.ops.ascend` call the references until the test ends."""
    for name, reference in REFERENCES.items():
        assert callable(getattr(ascend, name))
        monkeypatch.setattr(ascend, name, reference)


@contextmanager
def ascend_branch() -> Iterator[None]:
    """Let every CPU compute by the backend `ascend` with the references."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        patched(monkeypatch)
        monkeypatch.setattr(HardwareConfig, "backend", AscendOnCPU.backend)
        yield
