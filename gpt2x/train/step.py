"""One optimizer update as one graph: forward, backward, accumulation, clipping, guard, optimizer."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.optim.adamw import AdamW

# Maps over the parameters: a Python loop over hundreds of tensors exceeds the depth to which MindSpore unrolls.
square_sum = ops.MultitypeFuncGraph("square_sum")
multiply = ops.MultitypeFuncGraph("multiply")
add_to = ops.MultitypeFuncGraph("add_to")
clear = ops.MultitypeFuncGraph("clear")


@square_sum.register("Tensor")
def _square_sum(gradient):
    row = gradient.reshape(1, -1)
    return ops.matmul(row, row.reshape(-1, 1)).reshape(())


@multiply.register("Tensor", "Tensor")
def _multiply(factor, gradient):
    return gradient * factor


@add_to.register("Tensor", "Tensor")
def _add_to(buffer, gradient):
    return ops.assign_add(buffer, gradient)


@clear.register("Tensor")
def _clear(buffer):
    return ops.assign(buffer, ops.zeros_like(buffer))


class TrainStep(nn.Cell):
    """The graph of an update.

    Micro batches are summed into fp32 buffers by a loop inside the graph, so compile time does not grow with their
    number. Where the global gradient norm is not finite, the update is skipped: parameters and optimizer states
    stay as they are, bit for bit.

    Args:
        loss: a Cell of (ids, weights, randomness) -> scalar fp32.
        optimizer: updates its parameters in place.
        num_micro_batches: forward passes an update.
        grad_clip: largest global gradient norm, None for no clipping.
        has_dropout: whether the loss draws random numbers.
    """

    def __init__(
        self, loss: nn.Cell, optimizer: AdamW, num_micro_batches: int, grad_clip: float | None, has_dropout: bool
    ):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer = loss, optimizer
        self.num_micro_batches, self.has_dropout, self.grad_clip = num_micro_batches, has_dropout, grad_clip
        self.parameters = optimizer.parameters
        self.for_each = ops.HyperMap()
        self.buffers = ()
        if num_micro_batches > 1:
            self.buffers = ms.ParameterTuple(
                Parameter(initializer("zeros", p.shape, ms.float32), name=f"sum.{p.name}") for p in self.parameters
            )

    def randomness(self, key, first_row, ids):
        """The dropout key and the logical positions (B * T, 1) of the tokens of `ids` (B, T + 1)."""
        if not self.has_dropout:
            return None
        batch_size, length = ids.shape[0], ids.shape[1] - 1
        rows = (first_row + ops.arange(batch_size).astype(ms.int32)).reshape(-1, 1) * length
        return key, (rows + ops.arange(length).astype(ms.int32).reshape(1, -1)).reshape(-1, 1)

    def scaled_loss(self, ids, weights, key, first_row, loss_scale):
        """The loss of one micro batch, times the loss scale."""
        return self.loss(ids, weights, self.randomness(key, first_row, ids)) * loss_scale

    def gradients(self, ids, weights, key, loss_scale):
        """Loss and gradients of the global batch, both times the loss scale."""
        function = ms.value_and_grad(self.scaled_loss, None, self.parameters)
        if self.num_micro_batches == 1:
            return function(ids[0], weights[0], key, Tensor(0, ms.int32), loss_scale)
        self.for_each(clear, self.buffers)
        loss, index = Tensor(0.0, ms.float32), Tensor(0, ms.int32)
        while index < self.num_micro_batches:
            part, gradients = function(ids[index], weights[index], key, index * ids.shape[1], loss_scale)
            self.for_each(add_to, self.buffers, gradients)
            loss, index = loss + part, index + 1
        return loss, self.buffers

    def construct(self, ids, weights, key, loss_scale, rate, eps, keep):
        """One update.

        ids: (A, B, T + 1) int32, A micro batches.
        weights: (A, B, T) fp32, summing to one over the global batch.
        key: int32 scalar of (seed, step), for dropout.
        loss_scale: fp32 scalar, 1 unless the precision is fp16.
        rate, eps, keep: `AdamW.scalars`.

        Returns loss, global gradient norm before clipping (both unscaled) and whether the norm was finite.
        """
        loss, gradients = self.gradients(ids, weights, key, loss_scale)
        norm = ops.sqrt(ops.addn(self.for_each(square_sum, gradients))) / loss_scale
        finite = ops.isfinite(norm)
        if finite:
            factor = 1.0 / loss_scale
            if self.grad_clip is not None:
                factor = factor * ops.minimum(self.grad_clip / (norm + 1e-6), Tensor(1.0, ms.float32))
            self.optimizer(self.for_each(ops.partial(multiply, factor), gradients), rate, eps, keep)
        return loss / loss_scale, norm, finite
