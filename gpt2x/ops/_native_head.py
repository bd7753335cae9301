"""Head and cross entropy in C++: part of the native backend.

Legend: R rows, D hidden, V table rows.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x import native as cpp


class HeadLoss(nn.Cell):
    """Head and cross entropy in one kernel, some rows at a time: the logits of all rows never exist together.

    Args:
        vocab_size: V without padding.
        precision: of the operands of products, fp32 or bf16.
    """

    def __init__(self, vocab_size: int, precision: str = "fp32"):
        super().__init__()
        self.num_columns = Tensor(np.array([vocab_size], np.int32))
        self.nll = cpp.product("head_nll", precision)
        self.trained, self.frozen = HeadLossKernel(precision), FrozenHeadLossKernel(precision)

    def losses(self, hidden, table, labels):
        """hidden (R, D), table (V, D), labels (R,) int32 -> nll (R,); no gradient."""
        return self.nll(hidden, table, labels, self.num_columns)

    def construct(self, hidden, table, labels, weights, is_trained):
        """Arguments of `losses` and weights (R,) -> the sum of weights times nll, scalar fp32."""
        kernel = self.trained if is_trained else self.frozen
        return kernel(hidden, table, labels, self.num_columns, weights)[0]


class HeadLossKernel(nn.Cell):
    """`HeadLoss` with gradients computed while the logits exist (Liger, arXiv:2410.10989)."""

    def __init__(self, precision: str):
        super().__init__()
        self.forward = cpp.product("head_loss", precision)
        self.scale = cpp.operator("scale_in_place", in_place=True)

    def construct(self, hidden, table, labels, columns, weights):
        """-> loss, its gradients with respect to hidden (R, D) and table (V, D), nll (R,)."""
        nll, dhidden, dtable = self.forward(hidden, table, labels, columns, weights)
        return ops.reduce_sum(nll * weights), dhidden, dtable, nll

    def scaled(self, gradient, factor):
        """Multiply the gradient by a factor in place."""
        return ops.depend(gradient, self.scale(gradient, factor.reshape(1)))

    def bprop(self, hidden, table, labels, columns, weights, out, dout):
        """Gradients of hidden, table and weights."""
        dhidden, dtable = self.scaled(out[1], dout[0]), self.scaled(out[2], dout[0])
        return dhidden, dtable, ops.zeros_like(labels), ops.zeros_like(columns), out[3] * dout[0]


class FrozenHeadLossKernel(HeadLossKernel):
    """`HeadLossKernel` for a head that is not trained."""

    def __init__(self, precision: str):
        super().__init__(precision)
        self.forward = cpp.product("head_loss_frozen", precision)

    def construct(self, hidden, table, labels, columns, weights):
        """-> loss, its gradient with respect to hidden (R, D), nll (R,)."""
        nll, dhidden = self.forward(hidden, table, labels, columns, weights)
        return ops.reduce_sum(nll * weights), dhidden, nll

    def bprop(self, hidden, table, labels, columns, weights, out, dout):
        """Gradients of hidden and weights; zero for the table."""
        dhidden = self.scaled(out[1], dout[0])
        return dhidden, ops.zeros_like(table), ops.zeros_like(labels), ops.zeros_like(columns), out[2] * dout[0]
