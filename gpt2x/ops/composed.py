"""The composed backend: every operator written out with MindSpore's own, for any device and any precision.

On the CPU several of MindSpore's operators are ten times slower than the same formula written with matrix products and
elementwise operators, or have no kernel at all. A broadcasting operator there keeps index tables of four times its
output for as long as the graph lives. So rows and columns are spread by products with ones, which is as fast and saves
a third of a training step's memory. Cells have their own `bprop`, because autograd of the written-out formulas keeps
and re-reads many full-size intermediates. docs/design/ops.md has the measurements.

Legend: B batch, T tokens, D hidden, N heads, H head dim, V vocab, R rows, K in, N out of a linear.
"""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.config import HardwareConfig
from gpt2x.native.constants import FAST_GELU_SLOPE, GELU_CUBIC, GELU_SLOPE
from gpt2x.ops._attention import Attention, AttentionKernel, HeadAttention, hidden_keys
from gpt2x.ops._dropout import Dropout
from gpt2x.ops.base import Backend

__all__ = [
    "AdamWUpdate", "Attention", "AttentionKernel", "Composed", "CrossEntropy", "Dropout", "FastGelu", "GeluErf",
    "GeluNew", "HeadAttention", "LayerNorm", "Linear", "Lookup", "create", "fp32_tensors", "hidden_keys",
]  # fmt: skip


class LayerNorm(nn.Cell):
    """Layer normalisation over the last dim (Ba et al., arXiv:1607.06450), computed in fp32.

    Means and row sums are matrix products with a constant vector. MindSpore's CPU reductions over short rows are
    several times slower.
    """

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.hidden_size, self.kernel = hidden_size, LayerNormKernel(hidden_size, eps)

    def construct(self, x, weight, bias):
        """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype.

        The reshape must be here, not in the kernel. It puts one operator between a block's gradient and that of the
        layer norm. Without it, MindSpore's recomputation makes the block's dropout masks wait for a gradient that
        needs them ("Graph cycle exists").
        """
        return self.kernel(x.reshape(-1, self.hidden_size), weight, bias)[0].reshape(x.shape)


class LayerNormKernel(nn.Cell):
    """`LayerNorm` that also returns what its gradient needs."""

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
        """x (R, D) -> y (R, D), normalised rows (R, D), their reciprocal standard deviations spread to (R, D)."""
        rows = ops.cast(x, ms.float32)  # (R, D)
        centred = rows - self.spread(self.product(rows, self.mean))  # (R, D)
        column = ops.rsqrt(self.product(centred * centred, self.mean) + self.eps)  # (R, 1)
        scale = self.spread(column)  # (R, D)
        unit = centred * scale
        scaled = unit * self.product(self.ones_like(column), weight.reshape(1, -1))
        return ops.cast(self.add_row(scaled, bias), x.dtype), unit, scale

    def bprop(self, x, weight, bias, out, dout):
        """Gradients of x (R, D), weight (D,) and bias (D,)."""
        unit, scale = out[1], out[2]  # each (R, D)
        dy = ops.cast(dout[0], ms.float32)
        ones = self.ones_like(self.product(dy, self.mean))  # (R, 1)
        dunit = dy * self.product(ones, weight.reshape(1, -1))
        slope = self.spread(self.product(dunit * unit, self.mean))
        dx = (dunit - self.spread(self.product(dunit, self.mean)) - unit * slope) * scale
        dweight = self.column_sums(ones, dy * unit).reshape(-1)
        dbias = self.column_sums(ones, dy).reshape(-1)
        return ops.cast(dx, x.dtype), dweight, dbias


class GeluNew(nn.Cell):
    """The tanh form of GELU (Hendrycks and Gimpel, arXiv:1606.08415), Hugging Face's `gelu_new`.

    0.5 x (1 + tanh u) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3); the right side needs fewer passes.
    """

    def __init__(self):
        super().__init__()
        self.kernel = GeluNewKernel()

    def construct(self, x):
        """Same shape and dtype as x."""
        return self.kernel(x)[0]


class GeluNewKernel(nn.Cell):
    """`GeluNew` that also returns what its gradient needs."""

    def construct(self, x):
        """x -> y and the gate sigmoid(2u), both of x's shape."""
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
        return x * ops.sigmoid(FAST_GELU_SLOPE * x)


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
        """logits (R, V), labels (R,) int32 -> nll (R,), log-probabilities (R, V)."""
        log_probabilities = self.log_softmax(ops.cast(logits, ms.float32))
        return -ops.gather_elements(log_probabilities, 1, labels.reshape(-1, 1)).reshape(-1), log_probabilities

    def bprop(self, logits, labels, out, dout):
        """The gradient of the logits (R, V): softmax minus one-hot, times dout."""
        gradient = ops.exp(out[1]) * self.product(dout[0].reshape(-1, 1), self.ones_like(out[1][:1]))
        indices = self.stack((ops.arange(labels.shape[0]).astype(ms.int32), labels))  # (R, 2)
        return ops.cast(self.add_at(gradient, indices, -dout[0]), logits.dtype), ops.zeros_like(labels)


class Linear(nn.Cell):
    """x W + b, or x W if there is no b, in x's dtype."""

    def construct(self, x, weight, bias=None):
        """x (R, K), weight (K, N), bias (N,) or None -> (R, N)."""
        rows = ops.matmul(x, ops.cast(weight, x.dtype))
        return rows if bias is None else ops.bias_add(rows, ops.cast(bias, x.dtype))


class Lookup(nn.Cell):
    """Rows of a table."""

    def construct(self, ids, table):
        """ids (...) int32, table (V, D) -> (..., D)."""
        return ops.gather(table, ids, 0)


# Graphs map these over the parameters. A Python loop over hundreds of tensors exceeds the depth that MindSpore unrolls.
square_sum = ops.MultitypeFuncGraph("square_sum")
update_parameter = ops.MultitypeFuncGraph("update_parameter")
update_by_group = ops.MultitypeFuncGraph("update_by_group")
adam = ops.Adam()


@square_sum.register("Tensor")
def _square_sum(gradient):
    row = gradient.reshape(1, -1)
    return ops.matmul(row, row.reshape(-1, 1)).reshape(())


@update_parameter.register(*["Number"] * 2, *["Tensor"] * 8, "Bool")
def _update_parameter(beta1, beta2, factor, rate, eps, decay_factor, parameter, mean, square, gradient, decays):
    """Update one tensor and its two states in place."""
    if decays:
        ops.assign(parameter, parameter * decay_factor)
    adam(parameter, mean, square, 0.0, 0.0, rate, beta1, beta2, eps, gradient * factor)
    return True


@update_by_group.register(*["Number"] * 2, *["Tensor"] * 8, "Bool", "Tensor")
def _update_by_group(beta1, beta2, factor, rates, eps, decay_factors, parameter, mean, square, gradient, decays, group):
    """As `update_parameter`, with the rate and the decay factor of the parameter's group."""
    rate, decay_factor = ops.gather(rates, group, 0), ops.gather(decay_factors, group, 0)
    return update_parameter(beta1, beta2, factor, rate, eps, decay_factor, parameter, mean, square, gradient, decays)


def fp32_tensors(*values) -> tuple[Tensor, ...]:
    """Return numbers or arrays as fp32 tensors."""
    return tuple(Tensor(np.float32(value)) for value in values)


class AdamWUpdate(nn.Cell):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) of many parameters: decay, then MindSpore's fused Adam.

    MindSpore's own bias correction is switched off (its beta powers are 0); rate and eps already contain it
    (`AdamW.scalars`). Measured on 12.9 M values: ops.Adam 9 ms, ops.AdamWeightDecay 64 ms.
    """

    def __init__(self, beta1: float, beta2: float):
        super().__init__(auto_prefix=False)
        self.beta1, self.beta2, self.for_each = beta1, beta2, ops.HyperMap()

    def scalars(self, rate: np.ndarray, eps: float, decay: np.ndarray) -> tuple[Tensor, ...]:
        """Return the last three arguments of `construct`, fp32.

        Args:
            rate: learning rate, scalar or (G,), and eps; both with the bias correction.
            eps: see there.
            decay: the share of a weight that decays, learning rate times weight decay, of the shape of rate.
        """
        return fp32_tensors(rate, eps, 1 - decay)

    def construct(self, parameters, means, squares, gradients, decays, groups, factor, finite, rate, eps, decay_factor):
        """Update parameters and states in place; if `finite` is false, change nothing.

        parameters, means, squares, gradients: one tensor per parameter.
        decays: one bool per parameter.
        groups: one int32 scalar per parameter, the index into rate and decay_factor; None if there is only one group.
        factor: fp32 scalar on the gradients.
        rate, decay_factor: learning rate and 1 - rate * weight decay, fp32 scalars, or (G,) if there are groups.
        eps: fp32 scalar.
        """
        if finite:
            tensors = parameters, means, squares, gradients, decays
            if groups is None:
                update = ops.partial(update_parameter, self.beta1, self.beta2, factor, rate, eps, decay_factor)
                self.for_each(update, *tensors)
            else:
                update = ops.partial(update_by_group, self.beta1, self.beta2, factor, rate, eps, decay_factor)
                self.for_each(update, *tensors, groups)
        return True


ACTIVATIONS = {"gelu_new": GeluNew, "gelu": GeluErf, "fast_gelu": FastGelu}


class Composed(Backend):
    """MindSpore's operators, written out."""

    exp_is_exact = False  # MindSpore's CPU exp is off by up to 1e-6, always to the same side

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
        return ACTIVATIONS[name]()

    def dropout(self, rate: float, site: int, columns: int, first: int = 0) -> Dropout | None:
        """As `Backend.dropout`."""
        return Dropout(rate, site, columns, first) if rate > 0 else None

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
        attend = Attention(head_dim, max_seq_len)
        return HeadAttention(attend, num_heads, head_dim, dropout, first_head, all_heads or num_heads)

    def cross_entropy(self) -> nn.Cell:
        """As `Backend.cross_entropy`."""
        return CrossEntropy()

    def head_loss(self, vocab_size: int) -> nn.Cell | None:
        """None: the logits exist whole."""
        return None

    def square_sum(self) -> ops.MultitypeFuncGraph:
        """As `Backend.square_sum`."""
        return square_sum

    def adamw(self, beta1: float, beta2: float) -> nn.Cell:
        """As `Backend.adamw`."""
        return AdamWUpdate(beta1, beta2)

    def decoder(self, activation: str) -> None:
        """None: the model's cells decode."""
        return None


def create(hardware: HardwareConfig) -> Backend:
    """Return the composed backend."""
    return Composed(hardware)
