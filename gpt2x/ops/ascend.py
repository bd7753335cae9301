"""The ascend backend: MindSpore's fused operators for Ascend, and the composed ones for the rest.

Never run: only compiled by MindSpore's frontend (tests/ascend).

Legend: B batch, T tokens, D hidden, N heads, H head dim.
"""

from __future__ import annotations

import math
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.mint.nn.functional import embedding, layer_norm
from mindspore.ops import flash_attention_score
from mindspore.ops.auto_generate import GeluExt

from gpt2x.config import HardwareConfig
from gpt2x.ops._attention import Attention, HeadAttention
from gpt2x.ops._dropout import BYTE, Dropout
from gpt2x.ops.base import Backend
from gpt2x.ops.composed import Composed


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


square_sum = ops.MultitypeFuncGraph("ascend_square_sum")


@square_sum.register("Tensor")
def _square_sum(gradient):
    return ops.reduce_sum(ops.square(ops.cast(gradient, ms.float32)))


@cache
def compressed_causal_mask() -> Tensor:
    """Return the (2048, 2048) mask of `ops.flash_attention_score` for any length under sparse_mode=2; 1 discards."""
    return Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))


class FlashAttention(nn.Cell):
    """Causal attention by the fused flash kernel, in fp16 and bf16. docs/ascend.md explains the arguments of the call.

    Args:
        num_heads: of this process.
        head_dim: H.
        max_seq_len: the largest T.
        keep_prob: the fraction of the weights that dropout keeps.
    """

    def __init__(self, num_heads: int, head_dim: int, max_seq_len: int, keep_prob: float):
        super().__init__()
        self.num_heads, self.keep_prob = num_heads, keep_prob
        self.scale = 1.0 / math.sqrt(head_dim)
        self.mask = compressed_causal_mask()
        self.written_out = Attention(head_dim, max_seq_len)

    def construct(self, q, k, v, keep, hidden=None):
        """Same arguments and result as `Attention.construct`, except that `keep` may be bits.

        keep: None, or `Dropout.keep_bits` (B, N, T, T / 8); multipliers (B, N, T, T) are for attention written out.
        """
        mask = self.mask if hidden is None else ops.cast(hidden, ms.uint8).reshape(q.shape[0], 1, q.shape[2], -1)
        sparse_mode = 2 if hidden is None else 0
        if keep is None:
            return flash_attention_score(
                q, k, v, self.num_heads, attn_mask=mask, scalar_value=self.scale, input_layout="BNSD",
                sparse_mode=sparse_mode,
            )  # fmt: skip
        if keep.dtype != ms.uint8:  # not bits, since 8 does not divide T (`FlashHeadAttention.draw`)
            return self.written_out(q, k, v, keep, hidden)
        return flash_attention_score(
            q, k, v, self.num_heads, drop_mask=keep, attn_mask=mask, keep_prob=self.keep_prob, scalar_value=self.scale,
            input_layout="BNSD", sparse_mode=sparse_mode,
        )  # fmt: skip


class FlashHeadAttention(HeadAttention):
    """`HeadAttention` whose dropout masks are bits, as the flash kernel reads them."""

    def draw(self, key, rows, length):
        """Return the mask of rows (R, 1) of weights: (R, T / 8) uint8; multipliers (R, T) if 8 does not divide T."""
        if length % BYTE:
            return self.dropout.keep(key, rows, length)
        return self.dropout.keep_bits(key, rows, length)


ACTIVATIONS = {"gelu_new": GeluNew, "gelu": GeluErf}


class Ascend(Composed):
    """Composed, with Ascend's embedding, layer norm, GELU, flash attention and norm of gradients."""

    exp_is_exact = True

    def __init__(self, hardware: HardwareConfig):
        super().__init__(hardware)
        self.hardware = hardware

    def embedding(self) -> nn.Cell:
        """As `Backend.embedding`."""
        return Lookup()

    def layer_norm(self, hidden_size: int, eps: float) -> nn.Cell:
        """As `Backend.layer_norm`."""
        return LayerNorm(hidden_size, eps)

    def activation(self, name: str) -> nn.Cell:
        """As `Backend.activation`."""
        return ACTIVATIONS[name]() if name in ACTIVATIONS else super().activation(name)

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


def create(hardware: HardwareConfig) -> Backend:
    """Return the backend for Ascend."""
    return Ascend(hardware)
