"""Graphs of an optimizer update: forward and backward, accumulation, clipping, the guard, the optimizer.

The graphs take single tensors. MindSpore 2.10 compiles a graph again for every value in a tuple that it is called
with, and runs a NamedTuple within a graph in the Python interpreter.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.model.gpt2 import dropout_randomness
from gpt2x.optim.base import Optimizer

# Maps over the parameters: a Python loop over hundreds of tensors exceeds the depth to which MindSpore unrolls.
add_to = ops.MultitypeFuncGraph("add_to")
clear = ops.MultitypeFuncGraph("clear")


@add_to.register("Tensor", "Tensor")
def _add_to(buffer, gradient):
    return ops.assign_add(buffer, gradient)


@clear.register("Tensor")
def _clear(buffer):
    """Set a buffer to zero, non-finite values included, by a formula that MindSpore does not fold.

    `ops.zeros_like` becomes a constant: as much memory as all gradients for as long as the graph lives.
    """
    return ops.assign(buffer, ops.cast(buffer < buffer, ms.float32))


class Gradients(nn.Cell):
    """Loss and gradients of a micro batch, both multiplied by the loss scale.

    Args:
        loss: a Cell of (ids, weights, randomness, starts) -> scalar fp32.
        parameters: the parameters to differentiate by.
        has_dropout: whether the loss draws random numbers.
        row_length: as in `dropout_randomness`.
    """

    def __init__(self, loss: nn.Cell, parameters: ms.ParameterTuple, has_dropout: bool, row_length: int | None = None):
        super().__init__(auto_prefix=False)
        self.loss, self.parameters = loss, parameters
        self.has_dropout, self.row_length = has_dropout, row_length

    def scaled_loss(self, ids, weights, starts, key, first_row, loss_scale):
        """Return the loss of one micro batch, multiplied by the loss scale."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, *weights.shape, self.row_length)
        return self.loss(ids, weights, randomness, starts) * loss_scale

    def construct(self, ids, weights, starts, key, first_row, loss_scale):
        """-> scaled loss, scaled gradients."""
        inputs = ids, weights, starts, key, first_row, loss_scale
        return ms.value_and_grad(self.scaled_loss, None, self.parameters)(*inputs)


class Update(nn.Cell):
    """Gradient reduction over the processes, clipping, the guard and the optimizer.

    If the global gradient norm is not finite, or the loss or the norm is above its limit, parameters and optimizer
    states stay as they are, bit for bit.

    Args:
        optimizer: updates its parameters in place.
        reduction: sums the processes' gradients; None if there is only one process.
        grad_clip: largest global gradient norm, None for no clipping.
    """

    def __init__(self, optimizer: Optimizer, reduction: nn.Cell | None, grad_clip: float | None):
        super().__init__(auto_prefix=False)
        self.optimizer, self.reduction, self.grad_clip = optimizer, reduction, grad_clip
        self.for_each, self.square_sum = ops.HyperMap(), optimizer.backend.square_sum()

    def construct(self, gradients, loss, counted_fraction, loss_scale, loss_limit, norm_limit, optimizer_scalars):
        """Reduce, clip and update.

        Args:
            gradients: one per parameter, multiplied by the loss scale.
            loss: fp32 scalar, multiplied by the loss scale.
            counted_fraction: fp32 scalar, the sum of the loss weights of this process's rows.
            loss_scale: fp32 scalar.
            loss_limit: fp32 scalar, the largest unscaled loss with which the update is made.
            norm_limit: fp32 scalar, the largest norm with which it is made.
            optimizer_scalars: what `Optimizer.scalars` returns.

        Returns:
            Unscaled loss, global norm of the unscaled gradients before clipping, whether the update was made, and the
            counted fraction of the global batch.
        """
        if self.reduction is None:
            squares = ops.addn(self.for_each(self.square_sum, gradients))
        else:
            gradients, squares, loss, counted_fraction = self.reduction(gradients, loss, counted_fraction)
        scale = loss_scale * counted_fraction
        norm = ops.sqrt(squares) / scale
        loss = loss / scale
        is_made = ops.logical_and(ops.isfinite(norm), norm <= norm_limit)
        is_made = ops.logical_and(is_made, ops.logical_not(loss > loss_limit))  # a loss that is NaN alone is no spike
        factor = 1.0 / scale
        if self.grad_clip is not None:
            factor = factor * ops.minimum(self.grad_clip / (norm + 1e-6), Tensor(1.0, ms.float32))
        self.optimizer(gradients, factor, is_made, optimizer_scalars)  # which changes nothing unless `is_made`
        return loss, norm, is_made, counted_fraction


class GradientSums(nn.Cell):
    """fp32 sums of the micro batches' losses and gradients.

    Args:
        loss: the sum of losses.
        gradients: those of gradients.
    """

    def __init__(self, loss: Parameter, gradients: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss, self.gradients, self.is_empty = loss, ms.ParameterTuple(gradients), not gradients
        self.for_each = ops.HyperMap()

    @classmethod
    def of(cls, parameters: list[Parameter]) -> GradientSums:
        """Return sums of zero for gradients of these parameters' shapes."""
        loss = Parameter(Tensor(0.0, ms.float32), name="sum.loss", requires_grad=False)
        gradients = [
            Parameter(initializer("zeros", p.shape, ms.float32), name=f"sum.{p.name}", requires_grad=False)
            for p in parameters
        ]
        return cls(loss, gradients)

    def part(self, indices: list[int]) -> GradientSums:
        """Return the same sums, of some gradients only."""
        return GradientSums(self.loss, [self.gradients[index] for index in indices])

    def construct(self, loss, gradients):
        """Add a micro batch's loss and gradients -> the sum of losses."""
        if not self.is_empty:
            self.for_each(add_to, self.gradients, gradients)
        return ops.assign_add(self.loss, loss)


class Accumulation(nn.Cell):
    """Forward and backward of a micro batch, added to fp32 sums.

    Args:
        gradients: of a micro batch.
        sums: of the gradients that `reduction` returns.
        reduction: sums gradients over the processes in each micro batch, so that the sums are shards (ZeRO-2); None:
            that is done once, in the update.
    """

    def __init__(self, gradients: Gradients, sums: GradientSums, reduction: nn.Cell | None = None):
        super().__init__(auto_prefix=False)
        self.gradients, self.sums, self.reduction = gradients, sums, reduction

    def construct(self, ids, weights, starts, key, first_row, loss_scale):
        """-> the scaled sum of losses."""
        loss, gradients = self.gradients(ids, weights, starts, key, first_row, loss_scale)
        if self.reduction is not None:
            gradients, _ = self.reduction.reduce(gradients)
        return self.sums(loss, gradients)


class UpdateFromSums(nn.Cell):
    """The update by accumulated gradients, which it clears."""

    def __init__(self, update: Update, sums: GradientSums):
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.for_each = update, sums, ops.HyperMap()

    def construct(self, counted_fraction, loss_scale, loss_limit, norm_limit, *optimizer_scalars):
        """-> as `Update`."""
        loss = self.sums.loss + 0.0
        outputs = self.update(
            self.sums.gradients, loss, counted_fraction, loss_scale, loss_limit, norm_limit, optimizer_scalars
        )
        self.for_each(clear, self.sums.gradients)
        ops.assign(self.sums.loss, Tensor(0.0, ms.float32))
        return outputs


class UpdateFromBatch(nn.Cell):
    """The update of a batch of one micro batch, as one graph."""

    def __init__(self, update: Update, gradients: Gradients):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(
        self, ids, weights, starts, key, first_row, loss_scale, counted_fraction, loss_limit, norm_limit,
        *optimizer_scalars,
    ):  # fmt: skip
        """-> as `Update`."""
        loss, gradients = self.gradients(ids, weights, starts, key, first_row, loss_scale)
        return self.update(gradients, loss, counted_fraction, loss_scale, loss_limit, norm_limit, optimizer_scalars)
