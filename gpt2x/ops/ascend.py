"""The ascend backend: MindSpore's fused operators for Ascend, and the composed ones for the rest.

Never run: only compiled by MindSpore's frontend (tests/ascend).

Legend: B batch, T tokens, D hidden, N heads, H head dim, S sequences.
"""

from __future__ import annotations

import math
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.mint import bitwise_and, bitwise_xor, sort
from mindspore.mint.nn.functional import embedding, layer_norm
from mindspore.ops import flash_attention_score
from mindspore.ops.auto_generate import AdamW, GeluExt

from gpt2x.config import HardwareConfig
from gpt2x.config.schema_devices import MAX_PACKED_EXAMPLES
from gpt2x.ops._attention import Attention, HeadAttention, heads, hidden_keys, merged
from gpt2x.ops._dropout import BYTE, Dropout
from gpt2x.ops.base import Backend
from gpt2x.ops.composed import AdamWUpdate, Composed, fp32_tensors

AFTER_CORRECTION = Tensor(2**31, ms.int64)  # steps after which beta^step is 0 for every beta below 1 in fp32
MAX_SEQUENCES = 1024  # of `ops.flash_attention_score` in its layout TND


class Lookup(nn.Cell):
    """Rows of a table by MindSpore's operator for Ascend, whose gradient is one kernel."""

    def construct(self, ids, table):
        """ids (...) int32, table (V, D) -> (..., D)."""
        return embedding(ids, table)


class LayerNorm(nn.Cell):
    """Layer normalisation by MindSpore's fused operator, in fp32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.shape, self.eps = (hidden_size,), eps

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype."""
        return ops.cast(layer_norm(ops.cast(x, ms.float32), self.shape, weight, bias, self.eps), x.dtype)


gelu_ext = GeluExt()  # `mint.nn.functional.gelu` calls it too, but is not computed again in recomputed blocks


class GeluNew(nn.Cell):
    """The tanh form of GELU by MindSpore's fused operator."""

    def construct(self, x):
        """Same shape and dtype as x."""
        return ops.gelu(x, approximate="tanh")


class GeluErf(nn.Cell):
    """GELU by the error function, by MindSpore's fused operator."""

    def construct(self, x):
        """Same shape and dtype as x."""
        return gelu_ext(x, "none")


class AscendDropout(Dropout):
    """`Dropout` without MindSpore's shift, which has no kernel but one of the AI CPU."""

    def xor(self, x, y):
        """As `Dropout.xor`."""
        return bitwise_xor(x, y)

    def shift_right(self, x, bits: int):
        """As `Dropout.shift_right`: without its lowest bits, x / 2^bits is exact in fp32 (at most 19 digits of 24)."""
        quotient = ops.cast(bitwise_and(x, -(2**bits)), ms.float32) * 2.0**-bits
        return bitwise_and(ops.cast(quotient, ms.int32), 2 ** (32 - bits) - 1)


class Linear(nn.Cell):
    """`composed.Linear` by a product whose gradients are products of transposed matrices, without transposing them."""

    def __init__(self):
        super().__init__()
        self.product = ops.MatMul()

    def construct(self, x, weight, bias=None):
        """x (R, K), weight (K, N), bias (N,) or None -> (R, N)."""
        rows = self.product(x, ops.cast(weight, x.dtype))
        return rows if bias is None else ops.bias_add(rows, ops.cast(bias, x.dtype))


square_sum = ops.MultitypeFuncGraph("ascend_square_sum")


@square_sum.register("Tensor")
def _square_sum(gradient):
    return ops.reduce_sum(ops.square(ops.cast(gradient, ms.float32)))


update_parameter = ops.MultitypeFuncGraph("ascend_update_parameter")
adamw = AdamW()


@update_parameter.register(*["Number"] * 5, "Tensor", *["Tensor"] * 4, "Bool")
def _update_parameter(beta1, beta2, rate, eps, decay, factor, parameter, mean, square, gradient, decays):
    """Update one tensor and its two states in place."""
    adamw(
        parameter, mean, square, square, gradient * factor, AFTER_CORRECTION, rate, beta1, beta2,
        decay if decays else 0.0, eps, False, False,
    )  # fmt: skip
    return True


class AscendAdamWUpdate(AdamWUpdate):
    """`AdamWUpdate` by MindSpore's operator for Ascend, which decays as well.

    Its scalars are numbers of the host. `if finite` brings a number there too, so the device does not wait once more.
    Its own bias correction has no effect after so many steps; rate and eps already contain the correction.
    """

    def scalars(self, rate, eps, decay):
        """As `AdamWUpdate.scalars`, but the third is the decay over the rate, since the operator multiplies by it."""
        if rate.ndim:
            return super().scalars(rate, eps, decay)
        return fp32_tensors(rate, eps, decay / rate if rate else 0.0)

    def construct(self, parameters, means, squares, gradients, decays, groups, factor, finite, rate, eps, decay):
        """As `AdamWUpdate.construct`, which updates groups: their rates would be as many numbers of the host."""
        if groups is not None:
            return super().construct(
                parameters, means, squares, gradients, decays, groups, factor, finite, rate, eps, decay
            )
        if finite:
            update = ops.partial(
                update_parameter, self.beta1, self.beta2, float(rate), float(eps), float(decay), factor
            )
            self.for_each(update, parameters, means, squares, gradients, decays)
        return True


@cache
def compressed_causal_mask() -> Tensor:
    """Return the (2048, 2048) mask of `ops.flash_attention_score` for any length under sparse_mode=2; 1 discards."""
    return Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))


class FlashAttention(nn.Cell):
    """Causal attention by the fused flash kernel, in fp16 and bf16. docs/ascend.md explains the arguments of the calls.

    Args:
        num_heads: of this process.
        head_dim: H.
        max_seq_len: the largest T.
        keep_prob: the fraction of the weights that dropout keeps.
    """

    def __init__(self, num_heads: int, head_dim: int, max_seq_len: int, keep_prob: float):
        super().__init__()
        self.num_heads, self.head_dim, self.keep_prob = num_heads, head_dim, keep_prob
        self.scale = 1.0 / math.sqrt(head_dim)
        self.mask = compressed_causal_mask()
        self.written_out = Attention(head_dim, max_seq_len)

    def construct(self, q, k, v, keep, segments=None):
        """q, k, v (B, T, D) -> (B, T, D).

        keep: None, or `Dropout.keep_bits` (B, N, T, T / 8); multipliers (B, N, T, T) are for attention written out.
        segments: the result of `FlashHeadAttention.segments`; None for rows of one segment.
        """
        if isinstance(segments, tuple):
            return self.sequences(q, k, v, segments)
        if keep is not None and keep.dtype != ms.uint8:  # not bits, since 8 does not divide T
            shape = self.num_heads, self.head_dim
            return merged(self.written_out(heads(q, *shape), heads(k, *shape), heads(v, *shape), keep, segments))
        mask, sparse_mode, keep_prob = self.mask, 2, 1.0 if keep is None else self.keep_prob
        if segments is not None:
            mask, sparse_mode = ops.cast(segments, ms.uint8).reshape(q.shape[0], 1, q.shape[1], -1), 0
        return flash_attention_score(
            q, k, v, self.num_heads, drop_mask=keep, attn_mask=mask, keep_prob=keep_prob, scalar_value=self.scale,
            input_layout="BSH", sparse_mode=sparse_mode,
        )  # fmt: skip

    def sequences(self, q, k, v, ends):
        """Attend within each of many sequences: q, k, v (B, T, D) -> (B, T, D).

        ends: of `sequence_ends`, for the tokens of all rows one after the other and keys that no query reads.
        """
        query_ends, key_ends = ends
        shape = -1, self.num_heads, self.head_dim
        unread = ops.zeros((key_ends.shape[0], self.num_heads, self.head_dim), q.dtype)
        k, v = ops.cat((k.reshape(shape), unread)), ops.cat((v.reshape(shape), unread))  # (B * T + S, N, H)
        attended = flash_attention_score(
            q.reshape(shape), k, v, self.num_heads, attn_mask=self.mask, actual_seq_qlen=query_ends,
            actual_seq_kvlen=key_ends, scalar_value=self.scale, next_tokens=0, input_layout="TND", sparse_mode=2,
        )  # fmt: skip
        return attended.reshape(q.shape)


def sequence_ends(starts, size: int):
    """Return where sequences end among the tokens of all rows, for the layout TND: two tensors (S,) int32.

    starts (B, T) int32 as in `GPT2.construct`; size: S, more than all rows have segments. The first tensor counts
    queries: a sequence that is left over has none. The second counts keys. A sequence without keys is not documented,
    so those that are left over have keys after the last token: the first of them what remains, each other one.
    """
    num_tokens = starts.shape[0] * starts.shape[1]
    columns, tokens = ops.arange(starts.shape[1]), ops.arange(num_tokens + 2)
    is_first = ops.equal(starts, ops.cast(columns, ms.int32).reshape(1, -1)).reshape(-1)  # (B * T,)
    is_first = ops.cat((is_first, ops.zeros((2,), ms.bool_)))
    begins = sort(ops.cast(ops.where(is_first, tokens, num_tokens), ms.int32))[0]  # the rest is B * T
    ends = begins[1 : size + 1]
    unread = ops.cast(num_tokens + 1 + ops.arange(size), ms.int32)
    return ends, ops.where(begins[:size] < num_tokens, ends, unread)


class FlashHeadAttention(HeadAttention):
    """`HeadAttention` by the flash kernel, which takes heads side by side, and dropout masks in bits."""

    def draw(self, key, rows, length):
        """Return the mask of rows (R, 1) of weights: (R, T / 8) uint8; multipliers (R, T) if 8 does not divide T."""
        if length % BYTE:
            return self.dropout.keep(key, rows, length)
        return self.dropout.keep_bits(key, rows, length)

    def segments(self, starts):
        """starts (B, T) int32 -> `sequence_ends`, or `hidden_keys` if the layout TND does not fit.

        With dropout it does not: the size of its mask would depend on the lengths of the segments.
        """
        size = min(starts.shape[0] * (MAX_PACKED_EXAMPLES + 1), starts.shape[0] * starts.shape[1]) + 1
        if self.dropout is not None or size > MAX_SEQUENCES:
            return hidden_keys(starts)
        return sequence_ends(starts, size)

    def construct(self, qkv, randomness, segments=None):
        """As `HeadAttention.construct`."""
        q, k, v = ops.split(qkv, self.hidden_size, axis=-1)  # each (B, T, D)
        return self.attend(q, k, v, self.keep_mask(randomness, qkv.shape[0], qkv.shape[1]), segments)


ACTIVATIONS = {"gelu_new": GeluNew, "gelu": GeluErf}


class Ascend(Composed):
    """Composed, with Ascend's embedding, layer norm, GELU, flash attention and norm of gradients."""

    exp_is_exact = True

    def __init__(self, hardware: HardwareConfig):
        super().__init__(hardware)
        self.hardware = hardware

    def linear(self) -> nn.Cell:
        """As `Backend.linear`."""
        return Linear()

    def embedding(self) -> nn.Cell:
        """As `Backend.embedding`."""
        return Lookup()

    def layer_norm(self, hidden_size: int, eps: float) -> nn.Cell:
        """As `Backend.layer_norm`."""
        return LayerNorm(hidden_size, eps)

    def activation(self, name: str) -> nn.Cell:
        """As `Backend.activation`."""
        return ACTIVATIONS[name]() if name in ACTIVATIONS else super().activation(name)

    def dropout(self, rate: float, site: int, columns: int, first: int = 0) -> Dropout | None:
        """As `Backend.dropout`."""
        return AscendDropout(rate, site, columns, first) if rate > 0 else None

    def attention(
        self,
        num_heads: int,
        head_dim: int,
        max_seq_len: int,
        dropout: Dropout | None,
        first_head: int = 0,
        all_heads: int | None = None,
    ) -> nn.Cell:
        """As `Backend.attention`."""
        if not self.hardware.has_flash_kernel_of(num_heads, head_dim):
            return super().attention(num_heads, head_dim, max_seq_len, dropout, first_head, all_heads)
        attend = FlashAttention(num_heads, head_dim, max_seq_len, 1.0 if dropout is None else dropout.keep_prob)
        return FlashHeadAttention(attend, num_heads, head_dim, dropout, first_head, all_heads or num_heads)

    def square_sum(self) -> ops.MultitypeFuncGraph:
        """As `Backend.square_sum`."""
        return square_sum

    def adamw(self, beta1: float, beta2: float) -> nn.Cell:
        """As `Backend.adamw`."""
        return AscendAdamWUpdate(beta1, beta2)


def create(hardware: HardwareConfig) -> Backend:
    """Return the backend for Ascend."""
    return Ascend(hardware)
