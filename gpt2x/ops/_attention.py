"""Causal attention written out with MindSpore's operators: part of the backends `composed` and `ascend`.

Legend: B batch, T tokens, D hidden, N heads, H head dim.
"""

from __future__ import annotations

import math
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.ops._dropout import Dropout


@cache
def future_penalty(size: int) -> Tensor:
    """(size, size) fp32: -1e9 where the column comes after the row, else 0; one tensor for all layers."""
    return Tensor(np.triu(np.full((size, size), -1e9, np.float32), 1))


def hidden_keys(starts):
    """starts (B, T) int32, the column at which each token's segment begins -> (B, T, T) bool.

    True where the query of a row must not see the key of a column: the key comes after the query, or belongs to an
    earlier segment.
    """
    columns = ops.arange(starts.shape[1]).astype(ms.int32)
    keys, queries = columns.reshape(1, 1, -1), columns.reshape(1, -1, 1)
    return ops.logical_or(keys > queries, keys < starts.reshape(starts.shape[0], -1, 1))


def heads(x, num_heads: int, head_dim: int):
    """x (B, T, D) -> (B, N, T, H)."""
    return x.reshape(x.shape[0], x.shape[1], num_heads, head_dim).transpose(0, 2, 1, 3)


def merged(x):
    """x (B, N, T, H) -> (B, T, D)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


class Attention(nn.Cell):
    """Causal scaled dot-product attention (Vaswani et al., arXiv:1706.03762); the gradient reuses the weights."""

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        self.kernel = AttentionKernel(head_dim, max_seq_len)

    def construct(self, q, k, v, keep, hidden=None):
        """Attend to the keys that are not hidden.

        q, k, v: (B, N, T, H).
        keep: (B, N, T, T) dropout multipliers, or None.
        hidden: `hidden_keys` (B, T, T); None hides the keys after the query.
        Returns (B, N, T, H).
        """
        return self.kernel(q, k, v, keep, hidden)[0]


class AttentionKernel(nn.Cell):
    """`Attention` that also returns what its gradient needs.

    The gradient uses sum_j P_ij dP_ij = dO_i . O_i (Dao et al., arXiv:2205.14135, appendix B), which saves two passes
    over the (T, T) weights and MindSpore's slow softmax gradient.
    """

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        self.scale = 1.0 / math.sqrt(head_dim)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.mix_transposed = ops.BatchMatMul(transpose_a=True)
        self.softmax = ops.Softmax(axis=-1)
        self.future = future_penalty(max_seq_len)
        self.row = Tensor(np.ones((1, max_seq_len), np.float32))
        self.product, self.add_row = ops.MatMul(), ops.BiasAdd()

    def construct(self, q, k, v, keep, hidden):
        """Arguments of `Attention.construct` -> output (B, N, T, H), weights (B, N, T, T) fp32."""
        batch_size, num_heads, length = q.shape[:3]
        scores = ops.cast(self.scores(q * self.scale, k), ms.float32)  # (B, N, T, T)
        if hidden is None:
            masked = self.add_row(scores.reshape(-1, length * length), self.future[:length, :length].reshape(-1))
        else:
            penalty = ops.cast(hidden, ms.float32).reshape(batch_size, 1, -1) * -1e9  # (B, 1, T * T)
            heads = ops.ones((batch_size, num_heads, 1), ms.float32)
            masked = scores.reshape(batch_size, num_heads, -1) + self.mix(heads, penalty)  # (B, N, T * T)
        weights = self.softmax(masked.reshape(scores.shape))  # (B, N, T, T)
        dropped = weights if keep is None else weights * keep
        return self.mix(ops.cast(dropped, v.dtype), v), weights

    def bprop(self, q, k, v, keep, hidden, out, dout):
        """Gradients of q, k and v, each (B, N, T, H)."""
        weights = out[1]  # (B, N, T, T)
        dropped = weights if keep is None else weights * keep
        dv = self.mix_transposed(ops.cast(dropped, v.dtype), dout[0])
        dweights = ops.cast(self.scores(dout[0], v), ms.float32)
        if keep is not None:
            dweights = dweights * keep
        column = ops.cast(dout[0] * out[0], ms.float32).sum(axis=-1).reshape(-1, 1)  # (B * N * T, 1)
        rows = self.product(column, self.row[:, : q.shape[2]]).reshape(weights.shape)
        dscores = ops.cast(weights * (dweights - rows), q.dtype)
        dq = self.mix(dscores, k) * self.scale
        dk = self.mix_transposed(dscores, q) * self.scale
        no_keep = None if keep is None else ops.zeros_like(keep)
        return dq, dk, dv, no_keep, None if hidden is None else ops.zeros_like(hidden)


class HeadAttention(nn.Cell):
    """Causal attention of tokens whose queries, keys and values stand side by side.

    Args:
        attend: a Cell like `Attention`.
        num_heads: of this process.
        head_dim: H.
        dropout: on the weights, or None.
        first_head: number of this process' first head among all heads, which number the rows of the dropout mask.
        all_heads: heads of all processes.
    """

    def __init__(
        self, attend: nn.Cell, num_heads: int, head_dim: int, dropout: Dropout | None, first_head: int, all_heads: int
    ):
        super().__init__()
        self.attend, self.num_heads, self.head_dim, self.hidden_size = attend, num_heads, head_dim, num_heads * head_dim
        self.dropout, self.first_head, self.all_heads = dropout, first_head, all_heads

    def split(self, qkv):
        """qkv (B, T, 3D) -> three times (B, N, T, H)."""
        q, k, v = ops.split(qkv, self.hidden_size, axis=-1)  # each (B, T, D)
        shape = self.num_heads, self.head_dim
        return heads(q, *shape), heads(k, *shape), heads(v, *shape)

    def merge(self, x):
        """x (B, N, T, H) -> (B, T, D)."""
        return merged(x)

    def keep_mask(self, randomness, batch_size, length):
        """Return what `draw` draws for these heads on a single device; None without dropout."""
        if self.dropout is None or randomness is None:
            return None
        rows = randomness[-1].reshape(batch_size, 1, length, 1) * self.all_heads
        heads = self.first_head + ops.arange(self.num_heads).astype(ms.int32)
        rows = (rows + heads.reshape(1, -1, 1, 1)).reshape(-1, 1)  # (B * N * T, 1)
        return self.draw(randomness[0], rows, length).reshape(batch_size, self.num_heads, length, -1)

    def draw(self, key, rows, length):
        """Return the dropout multipliers of rows (R, 1) of weights: (R, T) fp32."""
        return self.dropout.keep(key, rows, length)

    def segments(self, starts):
        """starts (B, T) int32 as in `GPT2.construct` -> `hidden_keys` (B, T, T), which all layers share."""
        return hidden_keys(starts)

    def construct(self, qkv, randomness, segments=None):
        """qkv (B, T, 3D) -> (B, T, D).

        randomness: as in `GPT2.construct`; randomness[-1] has the rows of all tokens.
        segments: None, or the result of `segments`.
        """
        q, k, v = self.split(qkv)  # each (B, N, T, H)
        keep = self.keep_mask(randomness, qkv.shape[0], qkv.shape[1])
        return self.merge(self.attend(q, k, v, keep, segments))

    def recompute_weights(self):
        """Recompute the weights in backward instead of keeping them."""
        self.attend.recompute()
