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

from gpt2x.config import HardwareConfig
from gpt2x.ops._attention import Attention, HeadAttention
from gpt2x.ops._dropout import Dropout
from gpt2x.ops.base import Backend
from gpt2x.ops.composed import Composed


class LayerNormAscend(nn.Cell):
    """Layer normalisation by MindSpore's fused operator, in fp32."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.op = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype."""
        return ops.cast(self.op(ops.cast(x, ms.float32), weight, bias)[0], x.dtype)


class GeluNewAscend(nn.Cell):
    """The tanh form of GELU by MindSpore's fused operator."""

    def construct(self, x):
        """Same shape and dtype as x."""
        return ops.gelu(x, approximate="tanh")


@cache
def compressed_causal_mask() -> Tensor:
    """Return the (2048, 2048) mask of `ops.flash_attention_score` for any length under sparse_mode=2; 1 discards."""
    return Tensor(np.triu(np.ones((2048, 2048), np.uint8), 1))


class AttentionAscend(nn.Cell):
    """Causal attention on Ascend: the fused flash kernel if it applies, else written out.

    It applies to fp16 and bf16 without dropout on the weights. The kernel does take a dropout mask, but packed in
    bits. Written out, the mask is the one of the CPU. docs/ascend.md explains the arguments of the call.
    """

    def __init__(self, num_heads: int, head_dim: int, max_seq_len: int, flash: bool):
        super().__init__()
        self.num_heads, self.flash = num_heads, flash
        self.scale = 1.0 / math.sqrt(head_dim)
        self.written_out = Attention(head_dim, max_seq_len)
        self.mask = compressed_causal_mask() if flash else None

    def construct(self, q, k, v, keep, hidden=None):
        """Same arguments and result as `Attention.construct`."""
        if self.flash and keep is None and q.dtype != ms.float32:
            mask = self.mask if hidden is None else ops.cast(hidden, ms.uint8).reshape(q.shape[0], 1, q.shape[2], -1)
            return ops.flash_attention_score(
                q, k, v, self.num_heads, attn_mask=mask, scalar_value=self.scale,
                input_layout="BNSD", sparse_mode=2 if hidden is None else 0,
            )  # fmt: skip
        return self.written_out(q, k, v, keep, hidden)


class Ascend(Composed):
    """Composed, with the fused layer norm, GELU and flash attention."""

    exp_is_exact = True

    def __init__(self, hardware: HardwareConfig):
        super().__init__(hardware)
        self.flash = hardware.flash_attention

    def layer_norm(self, hidden_size: int, eps: float) -> nn.Cell:
        """As `Backend.layer_norm`."""
        return LayerNormAscend(hidden_size, eps)

    def activation(self, name: str) -> nn.Cell:
        """As `Backend.activation`."""
        return GeluNewAscend() if name == "gelu_new" else super().activation(name)

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
        attend = AttentionAscend(num_heads, head_dim, max_seq_len, self.flash)
        return HeadAttention(attend, num_heads, head_dim, dropout, first_head, all_heads or num_heads)


def create(hardware: HardwareConfig) -> Backend:
    """Return the backend for Ascend."""
    return Ascend(hardware)
