"""The operators written out with MindSpore's own (floor 1): any device, any precision.

On the CPU several of MindSpore's operators are an order of magnitude slower than the same formula written with matmul
and elementwise operators, or have no kernel at all. A broadcasting operator there keeps index tables of four times its
output for as long as the graph lives, so rows and columns are spread by products with ones: as fast, and a third of a
training step's memory less. The cells carry their own `bprop`, because autograd of the written-out formulas keeps and
re-reads many full-size intermediates. docs/design/ops.md has the measurements.

Legend: B batch, T tokens, D hidden, N heads, H head dim, V vocab, R rows.
"""

from __future__ import annotations

import math
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dim (Ba et al., arXiv:1607.06450), computed in fp32.

    Means and row sums are matrix products with a constant vector; MindSpore's CPU reductions over short rows are
    several times slower.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.kernel = hidden_size, LayerNormKernel(hidden_size, eps)

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype.

        The reshaping here, not in the kernel, gives autograd an operator of its own between a block's gradient and
        the layer norm's: where MindSpore's recomputation finds none, it makes the block's dropout masks wait for a
        gradient that needs them ("Graph cycle exists").
        """
        return self.kernel(x.reshape(-1, self.hidden_size), weight, bias)[0].reshape(x.shape)


class LayerNormKernel(nn.Cell):
    """`LayerNorm` whose outputs are also what its gradient needs."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        self.mean = Tensor(np.full((hidden_size, 1), 1.0 / hidden_size, np.float32))
        self.row = Tensor(np.ones((1, hidden_size), np.float32))
        self.product, self.add_row, self.ones_like = ops.MatMul(), ops.BiasAdd(), ops.OnesLike()
        self.column_sums = ops.MatMul(transpose_a=True)

    def spread(self, column):
        """column (R, 1) -> (R, D)."""
        return self.product(column, self.row)

    def construct(self, x, weight, bias):
        """x (R, D) -> y (R, D), the unit rows (R, D), their reciprocal standard deviations, spread (R, D)."""
        rows = ops.cast(x, ms.float32)
        centred = rows - self.spread(self.product(rows, self.mean))
        column = ops.rsqrt(self.product(centred * centred, self.mean) + self.eps)  # (R, 1)
        scale = self.spread(column)
        unit = centred * scale
        scaled = unit * self.product(self.ones_like(column), weight.reshape(1, -1))
        return ops.cast(self.add_row(scaled, bias), x.dtype), unit, scale

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x, weight and bias."""
        unit, scale = out[1], out[2]
        dy = ops.cast(dout[0], ms.float32)
        ones = self.ones_like(self.product(dy, self.mean))  # (R, 1)
        dunit = dy * self.product(ones, weight.reshape(1, -1))
        slope = self.spread(self.product(dunit * unit, self.mean))
        dx = (dunit - self.spread(self.product(dunit, self.mean)) - unit * slope) * scale
        dweight = self.column_sums(ones, dy * unit).reshape(-1)
        dbias = self.column_sums(ones, dy).reshape(-1)
        return ops.cast(dx, x.dtype), dweight, dbias


GELU_SLOPE = 2 * math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715 * GELU_SLOPE


class GeluNew(nn.Cell):
    """The tanh form of GELU (Hendrycks and Gimpel, arXiv:1606.08415), Hugging Face's `gelu_new`.

    0.5 x (1 + tanh u) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3); the right side takes fewer passes.
    """

    def __init__(self):
        super().__init__()
        self.kernel = GeluNewKernel()

    def construct(self, x):
        """Same shape and dtype as x."""
        return self.kernel(x)[0]


class GeluNewKernel(nn.Cell):
    """`GeluNew` whose outputs are also what its gradient needs."""

    def construct(self, x):
        """-> y and the gate sigmoid(2u), in x's shape."""
        gate = ops.sigmoid(x * (x * x * GELU_CUBIC + GELU_SLOPE))
        return x * gate, gate

    def bprop(self, x, out, dout):
        """The gradient of x: dy (s + y (1 - s) (2u)')."""
        y, gate = out
        return (dout[0] * (gate + (y - y * gate) * (x * x * (3 * GELU_CUBIC) + GELU_SLOPE)),)


class GeluErf(nn.Cell):
    """GELU by the error function, Hugging Face's `gelu`."""

    def construct(self, x):
        """Same shape and dtype as x."""
        return 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5)))


class FastGelu(nn.Cell):
    """x sigmoid(1.702 x), MindFormers' `fast_gelu` and Hugging Face's `quick_gelu`."""

    def construct(self, x):
        """Same shape and dtype as x."""
        return x * ops.sigmoid(1.702 * x)


@cache
def future_penalty(size: int) -> Tensor:
    """(size, size) fp32: -1e9 where the column is behind the row; one for all layers."""
    return Tensor(np.triu(np.full((size, size), -1e9, np.float32), 1))


def hidden_keys(starts):
    """starts (B, T) int32, the column at which each token's text begins -> (B, T, T) bool: true where the key of a
    column is hidden from the query of a row, since it is behind it or of a text before.
    """
    columns = ops.arange(starts.shape[1]).astype(ms.int32)
    keys, queries = columns.reshape(1, 1, -1), columns.reshape(1, -1, 1)
    return ops.logical_or(keys > queries, keys < starts.reshape(starts.shape[0], -1, 1))


class Attention(nn.Cell):
    """Causal scaled dot-product attention (Vaswani et al., arXiv:1706.03762), weights kept for the gradient."""

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        self.kernel = AttentionKernel(head_dim, max_seq_len)

    def construct(self, q, k, v, keep, hidden=None):
        """Attend to keys that are not hidden.

        q, k, v: (B, N, T, H).
        keep: (B, N, T, T) dropout multipliers, or None.
        hidden: `hidden_keys` (B, T, T), or None: those behind the query.
        Returns (B, N, T, H).
        """
        return self.kernel(q, k, v, keep, hidden)[0]


class AttentionKernel(nn.Cell):
    """`Attention` whose outputs are also what its gradient needs.

    The gradient uses sum_j P_ij dP_ij = dO_i . O_i (Dao et al., arXiv:2205.14135, appendix B), which spares two
    passes over the (T, T) weights and MindSpore's slow softmax gradient.
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
        """-> output (B, N, T, H) and weights (B, N, T, T) in fp32: each query's over its own and earlier keys."""
        batch_size, num_heads, length = q.shape[:3]
        scores = ops.cast(self.scores(q * self.scale, k), ms.float32)
        if hidden is None:
            masked = self.add_row(scores.reshape(-1, length * length), self.future[:length, :length].reshape(-1))
        else:
            penalty = ops.cast(hidden, ms.float32).reshape(batch_size, 1, -1) * -1e9
            heads = ops.ones((batch_size, num_heads, 1), ms.float32)
            masked = scores.reshape(batch_size, num_heads, -1) + self.mix(heads, penalty)
        weights = self.softmax(masked.reshape(scores.shape))
        dropped = weights if keep is None else weights * keep
        return self.mix(ops.cast(dropped, v.dtype), v), weights

    def bprop(self, q, k, v, keep, hidden, out, dout):
        """Gradients of q, k and v."""
        weights = out[1]
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


class CrossEntropy(nn.Cell):
    """Negative log-likelihood of each row's label, in nats and fp32."""

    def __init__(self):
        super().__init__()
        self.kernel = CrossEntropyKernel()

    def construct(self, logits, labels):
        """logits (R, V), labels (R,) int32 -> nll (R,)."""
        return self.kernel(logits, labels)[0]


class CrossEntropyKernel(nn.Cell):
    """`CrossEntropy` whose outputs are also what its gradient, softmax minus one-hot, needs."""

    def __init__(self):
        super().__init__()
        self.log_softmax = ops.LogSoftmax(axis=-1)
        self.add_at, self.stack = ops.TensorScatterAdd(), ops.Stack(axis=1)
        self.product, self.ones_like = ops.MatMul(), ops.OnesLike()

    def construct(self, logits, labels):
        """-> nll (R,) and log-probabilities (R, V)."""
        log_probabilities = self.log_softmax(ops.cast(logits, ms.float32))
        return -ops.gather_elements(log_probabilities, 1, labels.reshape(-1, 1)).reshape(-1), log_probabilities

    def bprop(self, logits, labels, out, dout):
        """The gradient of the logits."""
        gradient = ops.exp(out[1]) * self.product(dout[0].reshape(-1, 1), self.ones_like(out[1][:1]))
        site = self.stack((ops.arange(labels.shape[0]).astype(ms.int32), labels))  # (R, 2)
        return ops.cast(self.add_at(gradient, site, -dout[0]), logits.dtype), ops.zeros_like(labels)


MIX_1, MIX_2 = 0x2C1B3C6D, 0x297A2D39  # odd multipliers below 2^31: int32 is what graphs multiply


def mix(x):
    """A bijection of int32 that spreads every bit (the form of MurmurHash3's finaliser; public domain)."""
    x = ops.bitwise_xor(x, shift_right(x, 16)) * MIX_1
    x = ops.bitwise_xor(x, shift_right(x, 13)) * MIX_2
    return ops.bitwise_xor(x, shift_right(x, 16))


def shift_right(x, bits: int):
    """The logical shift; MindSpore's keeps the sign."""
    return ops.bitwise_and(ops.bitwise_right_shift(x, bits), 2 ** (32 - bits) - 1)


class Dropout(nn.Cell):
    """Dropout (Srivastava et al., 2014) whose mask is a pure function of key, place and logical position.

    The mask at (row, column) is a hash of (key, place, row) and column, so that a resumed run, another micro batch
    size or another layout drops the same activations: MindSpore's own dropout keeps hidden kernel state that cannot
    be saved. Rows and columns are hashed in full; what is left for each element is x (x + M) mod 2^32 of their sum x,
    of which the upper bits decide: additions and multiplications are what int32 does fast on the CPU (a shift costs
    three times as much). `tests/test_ops.py` holds the masks to the statistics of independent draws.

    Args:
        rate: the share that is dropped, in [0, 1).
        place: a number that no other dropout of the model has.
        columns: the largest size of the last dim.
        first: logical number of the first of those columns, where another process has those before.
    """

    def __init__(self, rate: float, site: int, columns: int, first: int = 0):
        super().__init__()
        self.first = first
        self.scale = 1.0 / (1.0 - rate)
        self.site = (site * 0x9E3779B1 + 0x7F4A7C15) % 2**31
        self.threshold = round(rate * 2**32) - 2**31
        numbers = np.arange(first + 1, first + columns + 1, dtype=np.uint64)
        column = numbers * np.uint64(0x9E3779B97F4A7C15)  # Weyl sequence
        self.columns = Tensor((column >> np.uint64(32)).astype(np.uint32).view(np.int32).reshape(1, columns))

    def keep(self, key, rows, columns: int):
        """Multipliers, 0 or 1 / (1 - rate), fp32.

        key: int32 scalar of (seed, step); rows: (R, 1) int32 logical row numbers -> (R, columns).
        """
        x = mix(mix(ops.bitwise_xor(rows, self.site)) + key) + mix(self.columns[:, :columns])
        x = x * (x + MIX_1)
        return ops.cast(x >= self.threshold, ms.float32) * self.scale

    def construct(self, x, key, rows):
        """x (B, T, D); rows (B * T, 1) -> x with a share dropped."""
        return x * ops.cast(self.keep(key, rows, x.shape[-1]), x.dtype).reshape(x.shape)


class Linear(nn.Cell):
    """x W + b, or x W where there is no b, in x's dtype."""

    def construct(self, x, weight, bias=None):
        """x (R, K), weight (K, N), bias (N,) or None -> (R, N)."""
        rows = ops.matmul(x, ops.cast(weight, x.dtype))
        return rows if bias is None else ops.bias_add(rows, ops.cast(bias, x.dtype))


class HeadAttention(nn.Cell):
    """Causal attention of tokens whose queries, keys and values stand side by side.

    Args:
        attend: as `Attention`.
        num_heads: of this process.
        head_dim: H.
        dropout: on the weights, or None.
        first_head: this process' first among those of all, which number the rows of the dropout's mask.
        all_heads: of all processes.
    """

    def __init__(
        self, attend: nn.Cell, num_heads: int, head_dim: int, dropout: Dropout | None, first_head: int, all_heads: int
    ):
        super().__init__()
        self.attend, self.num_heads, self.head_dim, self.hidden_size = attend, num_heads, head_dim, num_heads * head_dim
        self.dropout, self.first_head, self.all_heads = dropout, first_head, all_heads

    def heads(self, x):
        """x (B, T, D) -> (B, N, T, H)."""
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(0, 2, 1, 3)

    def split(self, qkv):
        """qkv (B, T, 3D) -> three times (B, N, T, H)."""
        q, k, v = ops.split(qkv, self.hidden_size, axis=-1)  # each (B, T, D)
        return self.heads(q), self.heads(k), self.heads(v)

    def merge(self, x):
        """x (B, N, T, H) -> (B, T, D)."""
        return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], self.hidden_size)

    def keep_mask(self, randomness, batch_size, length):
        """Dropout multipliers of the attention weights (B, N, T, T), as one device would draw them; or None."""
        if self.dropout is None or randomness is None:
            return None
        rows = randomness[-1].reshape(batch_size, 1, length, 1) * self.all_heads
        heads = self.first_head + ops.arange(self.num_heads).astype(ms.int32)
        rows = (rows + heads.reshape(1, -1, 1, 1)).reshape(-1, 1)
        return self.dropout.keep(randomness[0], rows, length).reshape(batch_size, self.num_heads, length, length)

    def construct(self, qkv, randomness, starts=None):
        """qkv (B, T, 3D); randomness and starts as in `GPT2.construct`, randomness[-1] of all tokens -> (B, T, D)."""
        q, k, v = self.split(qkv)
        keep = self.keep_mask(randomness, qkv.shape[0], qkv.shape[1])
        hidden = None if starts is None else hidden_keys(starts)
        return self.merge(self.attend(q, k, v, keep, hidden))

    def recompute_weights(self):
        """Have the weights computed again in backward instead of kept."""
        self.attend.recompute()
