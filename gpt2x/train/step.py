"""An optimizer update as graphs: forward, backward, accumulation, clipping, guard, optimizer."""

from __future__ import annotations

import mindspore as ms
import numpy as np
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


class Gradients(nn.Cell):
    """Loss and gradients of a micro batch, both times the loss scale.

    Args:
        loss: a Cell of (ids, weights, randomness) -> scalar fp32.
        parameters: what is differentiated by.
        has_dropout: whether the loss draws random numbers.
    """

    def __init__(self, loss: nn.Cell, parameters: ms.ParameterTuple, has_dropout: bool):
        super().__init__(auto_prefix=False)
        self.loss, self.parameters, self.has_dropout = loss, parameters, has_dropout

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

    def construct(self, ids, weights, key, first_row, loss_scale):
        """-> scaled loss, scaled gradients."""
        return ms.value_and_grad(self.scaled_loss, None, self.parameters)(ids, weights, key, first_row, loss_scale)


class Update(nn.Cell):
    """Clipping, guard and optimizer.

    Where the global gradient norm is not finite, parameters and optimizer states stay as they are, bit for bit.
    """

    def __init__(self, optimizer: AdamW, grad_clip: float | None):
        super().__init__(auto_prefix=False)
        self.optimizer, self.grad_clip, self.for_each = optimizer, grad_clip, ops.HyperMap()

    def construct(self, gradients, loss_scale, rate, eps, keep):
        """-> global norm of the unscaled gradients before clipping, and whether it was finite."""
        norm = ops.sqrt(ops.addn(self.for_each(square_sum, gradients))) / loss_scale
        finite = ops.isfinite(norm)
        if finite:
            factor = 1.0 / loss_scale
            if self.grad_clip is not None:
                factor = factor * ops.minimum(self.grad_clip / (norm + 1e-6), Tensor(1.0, ms.float32))
            self.optimizer(self.for_each(ops.partial(multiply, factor), gradients), rate, eps, keep)
        return norm, finite


class WholeStep(nn.Cell):
    """The update of a batch that fits into one forward pass, as one graph."""

    def __init__(self, gradients: Gradients, update: Update):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, ids, weights, key, first_row, loss_scale, rate, eps, keep):
        """-> unscaled loss, norm, finite."""
        loss, gradients = self.gradients(ids, weights, key, first_row, loss_scale)
        norm, finite = self.update(gradients, loss_scale, rate, eps, keep)
        return loss / loss_scale, norm, finite


class Accumulation(nn.Cell):
    """Adds a micro batch's gradients to fp32 sums."""

    def __init__(self, gradients: Gradients, sums: ms.ParameterTuple):
        super().__init__(auto_prefix=False)
        self.gradients, self.sums, self.for_each = gradients, sums, ops.HyperMap()

    def construct(self, ids, weights, key, first_row, loss_scale):
        """-> unscaled loss."""
        loss, gradients = self.gradients(ids, weights, key, first_row, loss_scale)
        self.for_each(add_to, self.sums, gradients)
        return loss / loss_scale


class UpdateFromSums(nn.Cell):
    """The update by accumulated gradients, which are cleared."""

    def __init__(self, update: Update, sums: ms.ParameterTuple):
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.for_each = update, sums, ops.HyperMap()

    def construct(self, loss_scale, rate, eps, keep):
        """-> norm, finite."""
        found = self.update(self.sums, loss_scale, rate, eps, keep)
        self.for_each(clear, self.sums)
        return found


class TrainStep:
    """An optimizer update of a global batch.

    One graph where the batch is one micro batch. Where micro batches accumulate, two: one that each micro batch runs
    through and one that updates. A loop inside one graph does it as well, but MindSpore's recomputation does not
    reach into a loop's body (tests/ascend).

    Args:
        loss: a Cell of (ids, weights, randomness) -> scalar fp32.
        optimizer: updates its parameters in place.
        num_micro_batches: A, forward passes an update.
        grad_clip: largest global gradient norm, None for no clipping.
        has_dropout: whether the loss draws random numbers.
    """

    def __init__(
        self, loss: nn.Cell, optimizer: AdamW, num_micro_batches: int, grad_clip: float | None, has_dropout: bool
    ):
        gradients = Gradients(loss, optimizer.parameters, has_dropout)
        update = Update(optimizer, grad_clip)
        self.whole = self.accumulation = self.update = None
        if num_micro_batches == 1:
            self.whole = WholeStep(gradients, update)
        else:
            sums = ms.ParameterTuple(
                Parameter(initializer("zeros", p.shape, ms.float32), name=f"sum.{p.name}") for p in optimizer.parameters
            )
            self.accumulation, self.update = Accumulation(gradients, sums), UpdateFromSums(update, sums)
        self.is_compiled = False

    def graphs(self, ids, weights, key, loss_scale, *scalars) -> list[tuple[nn.Cell, tuple[Tensor, ...]]]:
        """The graphs and example inputs; arguments as in `__call__`."""
        micro_batch = (Tensor(ids[0]), Tensor(weights[0]), key, Tensor(0, ms.int32), loss_scale)
        if self.whole is not None:
            return [(self.whole, (*micro_batch, *scalars))]
        return [(self.accumulation, micro_batch), (self.update, (loss_scale, *scalars))]

    def compile(self, *inputs) -> None:
        """Compile the graphs, so that the first step takes no longer than another; arguments as in `__call__`."""
        for cell, example in self.graphs(*inputs):
            cell.compile(*example)
        self.is_compiled = True

    def __call__(
        self, ids: np.ndarray, weights: np.ndarray, key: Tensor, loss_scale: Tensor, *scalars: Tensor
    ) -> tuple[float, float, bool]:
        """One update.

        Args:
            ids: (A, B, T + 1) int32.
            weights: (A, B, T) fp32, summing to one over the global batch.
            key: int32 scalar of (seed, step), for dropout.
            loss_scale: fp32 scalar, 1 unless the precision is fp16.
            scalars: `AdamW.scalars`.

        Returns:
            Loss, global gradient norm before clipping (both unscaled) and whether the norm was finite.
        """
        if self.whole is not None:
            found = self.whole(Tensor(ids[0]), Tensor(weights[0]), key, Tensor(0, ms.int32), loss_scale, *scalars)
            loss, norm, finite = (value.asnumpy() for value in found)
            return float(loss), float(norm), bool(finite)
        parts = [
            self.accumulation(
                Tensor(ids[index]), Tensor(weights[index]), key, Tensor(index * ids.shape[1], ms.int32), loss_scale
            )
            for index in range(len(ids))
        ]
        norm, finite = (value.asnumpy() for value in self.update(loss_scale, *scalars))
        return float(sum(part.asnumpy() for part in parts)), float(norm), bool(finite)
