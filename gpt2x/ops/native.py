"""The operators by kernels of our own, for the CPU in fp32 (floor 1): C++ in gpt2x/native/src.

Each equals its namesake in `composed` but for rounding; tests/test_native.py holds them together.

Legend: B batch, T tokens, D hidden, N heads, H head dim, V table rows, R rows, K in, N out of a linear.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.native import operator
from gpt2x.ops import composed

ACTIVATIONS = ("gelu_new", "fast_gelu")


class Linear(nn.Cell):
    """x W + b, or x W where there is no b."""

    def __init__(self):
        super().__init__()
        self.affine, self.product = AffineKernel(), ProductKernel()

    def construct(self, x, weight, bias=None):
        """x (R, K), weight (K, N), bias (N,) or None -> (R, N)."""
        return self.product(x, weight) if bias is None else self.affine(x, weight, bias)


class ProductKernel(nn.Cell):
    """x W. Gradients are operators apart, so that those of frozen weights are not computed."""

    def __init__(self):
        super().__init__()
        self.forward = operator("linear", lambda x, w: [x[0], w[1]])
        self.dx = operator("linear_dx", lambda dy, w: [dy[0], w[0]])
        self.dw = operator("linear_dw", lambda x, dy: [x[1], dy[1]])

    def construct(self, x, weight):
        """x (R, K), weight (K, N) -> (R, N)."""
        return self.forward(x, weight)

    def bprop(self, x, weight, out, dout):
        """Gradients of x and weight."""
        return self.dx(dout, weight), self.dw(x, dout)


class AffineKernel(nn.Cell):
    """x W + b."""

    def __init__(self):
        super().__init__()
        self.forward = operator("linear", lambda x, w, b: [x[0], w[1]])
        self.dx = operator("linear_dx", lambda dy, w: [dy[0], w[0]])
        self.dw = operator("linear_dw", lambda x, dy: [x[1], dy[1]])
        self.db = operator("linear_db", lambda dy: [dy[1]])

    def construct(self, x, weight, bias):
        """x (R, K), weight (K, N), bias (N,) -> (R, N)."""
        return self.forward(x, weight, bias)

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x, weight and bias."""
        return self.dx(dout, weight), self.dw(x, dout), self.db(dout)


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dim (Ba et al., arXiv:1607.06450)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.kernel = hidden_size, LayerNormKernel(eps)

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D)."""
        return self.kernel(x.reshape(-1, self.hidden_size), weight, bias)[0].reshape(x.shape)


class LayerNormKernel(nn.Cell):
    """`LayerNorm` whose outputs are also what its gradient needs."""

    def __init__(self, eps: float):
        super().__init__()
        self.eps = Tensor(np.array([eps], np.float32))
        self.forward = operator("layer_norm", lambda x, w, b, e: (x, x[:1], x[:1]), 3)
        self.backward = operator("layer_norm_grad", lambda dy, x, w, m, s: (x, w, w), 3)

    def construct(self, x, weight, bias):
        """x (R, D) -> y (R, D), mean (R,), reciprocal standard deviation (R,)."""
        return self.forward(x, weight, bias, self.eps)

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x, weight and bias."""
        return self.backward(dout[0], x, weight, out[1], out[2])


class Activation(nn.Cell):
    """One of ACTIVATIONS, as in `composed`."""

    def __init__(self, name: str):
        super().__init__()
        self.forward = operator(name, lambda x: x)
        self.backward = operator(f"{name}_grad", lambda x, dy: x)

    def construct(self, x):
        """Same shape as x."""
        return self.forward(x)

    def bprop(self, x, out, dout):
        """The gradient of x."""
        return (self.backward(x, dout),)


class Dropout(composed.Dropout):
    """`composed.Dropout`, its masks drawn within the kernels that apply them."""

    def __init__(self, rate: float, site: int, columns: int, first: int = 0):
        super().__init__(rate, site, columns, first)
        self.settings = Tensor(self.mask_settings())
        self.kernel = DropoutKernel()

    def mask_settings(self) -> np.ndarray:
        """What decides a mask beside key and row, int32: place, threshold, the bits of the scale, the first column."""
        return np.array([self.site, self.threshold, np.float32(self.scale).view(np.int32), self.first], np.int32)

    def construct(self, x, key, rows):
        """x (B, T, D); rows (B * T, 1) -> x with a share dropped."""
        return self.kernel(x, key, rows, self.settings)


class DropoutKernel(nn.Cell):
    """`Dropout` with its mask drawn again for the gradient."""

    def __init__(self):
        super().__init__()
        self.apply_mask = operator("dropout", lambda x, key, rows, settings: x)

    def construct(self, x, key, rows, settings):
        """x (..., D), rows of as many numbers as x has rows -> the shape of x."""
        return self.apply_mask(x, key, rows, settings)

    def bprop(self, x, key, rows, settings, out, dout):
        """The gradient of x, through the same mask."""
        dx = self.apply_mask(dout, key, rows, settings)
        return dx, ops.zeros_like(key), ops.zeros_like(rows), ops.zeros_like(settings)


class HeadAttention(nn.Cell):
    """`composed.HeadAttention`, which has the arguments, without scores that outlive a block of queries."""

    def __init__(self, num_heads: int, head_dim: int, dropout: Dropout | None, first_head: int, all_heads: int):
        super().__init__()
        self.kernel, self.dropout = AttentionKernel(num_heads), dropout
        self.none = Tensor(np.zeros(1, np.int32))
        mask = np.zeros(4, np.int32) if dropout is None else dropout.mask_settings()
        self.settings = tuple(
            Tensor(np.array([has_starts, has_dropout, first_head, all_heads, *mask], np.int32))
            for has_dropout in (0, 1)
            for has_starts in (0, 1)
        )
        self.split_heads = composed.HeadAttention(nn.Cell(), num_heads, head_dim, None, first_head, all_heads)

    def split(self, qkv):
        """qkv (B, T, 3D) -> three times (B, N, T, H)."""
        return self.split_heads.split(qkv)

    def merge(self, x):
        """x (B, N, T, H) -> (B, T, D)."""
        return self.split_heads.merge(x)

    def construct(self, qkv, randomness, starts=None):
        """qkv (B, T, 3D); randomness and starts as in `GPT2.construct`, randomness[-1] of all tokens -> (B, T, D)."""
        has_dropout = self.dropout is not None and randomness is not None
        key = randomness[0] if has_dropout else self.none
        rows = randomness[-1] if has_dropout else self.none
        settings = self.settings[2 * has_dropout + (starts is not None)]
        return self.kernel(qkv, self.none if starts is None else starts, key, rows, settings)[0]

    def recompute_weights(self):
        """Nothing: weights are computed again in backward as it is."""


class AttentionKernel(nn.Cell):
    """`HeadAttention` whose outputs are also what its gradient needs."""

    def __init__(self, num_heads: int):
        super().__init__()
        self.forward = operator(
            "attention",
            lambda qkv, starts, key, rows, settings: (
                [qkv[0], qkv[1], qkv[2] // 3],
                [qkv[0], num_heads, qkv[1]],
            ),
            2,
        )
        self.backward = operator("attention_grad", lambda dy, qkv, out, lse, starts, key, rows, settings: qkv)

    def construct(self, qkv, starts, key, rows, settings):
        """-> output (B, T, D) and the logarithms of the scores' sums (B, N, T)."""
        return self.forward(qkv, starts, key, rows, settings)

    def bprop(self, qkv, starts, key, rows, settings, out, dout):
        """The gradient of qkv."""
        dqkv = self.backward(dout[0], qkv, out[0], out[1], starts, key, rows, settings)
        nothing = ops.zeros_like(starts), ops.zeros_like(key), ops.zeros_like(rows), ops.zeros_like(settings)
        return dqkv, *nothing


class HeadLoss(nn.Cell):
    """Head and cross entropy in one, a share of the rows at a time: logits of all rows never exist together."""

    def __init__(self, vocab_size: int):
        super().__init__()
        self.num_columns = Tensor(np.array([vocab_size], np.int32))
        self.nll = operator("head_nll", lambda hidden, table, labels, columns: hidden[:1])
        self.trained, self.frozen = HeadLossKernel(), FrozenHeadLossKernel()

    def losses(self, hidden, table, labels):
        """hidden (R, D), table (V, D), labels (R,) int32 -> nll (R,); no gradient."""
        return self.nll(hidden, table, labels, self.num_columns)

    def construct(self, hidden, table, labels, weights, is_trained):
        """As `losses`, weights (R,) -> the scalar sum of weights times nll."""
        kernel = self.trained if is_trained else self.frozen
        return kernel(hidden, table, labels, self.num_columns, weights)[0]


class HeadLossKernel(nn.Cell):
    """`HeadLoss`, which computes the gradients beside the loss while it has the logits (Liger, arXiv:2410.10989)."""

    def __init__(self):
        super().__init__()
        self.forward = operator("head_loss", lambda h, t, labels, columns, w: (h[:1], h, t), 3)
        self.scale = operator("scale_in_place", lambda x, factor: [1], in_place=True)

    def construct(self, hidden, table, labels, columns, weights):
        """-> loss, its gradients by hidden (R, D) and table (V, D), nll (R,)."""
        nll, dhidden, dtable = self.forward(hidden, table, labels, columns, weights)
        return ops.reduce_sum(nll * weights), dhidden, dtable, nll

    def scaled(self, gradient, factor):
        """The gradient times a factor, in its own memory."""
        return ops.depend(gradient, self.scale(gradient, factor.reshape(1)))

    def bprop(self, hidden, table, labels, columns, weights, out, dout):
        """Gradients of hidden, table and weights."""
        dhidden, dtable = self.scaled(out[1], dout[0]), self.scaled(out[2], dout[0])
        return dhidden, dtable, ops.zeros_like(labels), ops.zeros_like(columns), out[3] * dout[0]


class FrozenHeadLossKernel(HeadLossKernel):
    """`HeadLossKernel` of a head that is not trained."""

    def __init__(self):
        super().__init__()
        self.forward = operator("head_loss", lambda h, t, labels, columns, w: (h[:1], h), 2)

    def construct(self, hidden, table, labels, columns, weights):
        """-> loss, its gradient by hidden (R, D), nll (R,)."""
        nll, dhidden = self.forward(hidden, table, labels, columns, weights)
        return ops.reduce_sum(nll * weights), dhidden, nll

    def bprop(self, hidden, table, labels, columns, weights, out, dout):
        """Gradients of hidden and weights; none of the table."""
        dhidden = self.scaled(out[1], dout[0])
        return dhidden, ops.zeros_like(table), ops.zeros_like(labels), ops.zeros_like(columns), out[2] * dout[0]
