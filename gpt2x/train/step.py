"""An optimizer update as graphs: forward, backward, accumulation, clipping, guard, optimizer."""

from __future__ import annotations

from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.optim.adamw import AdamW

# Maps over the parameters: a Python loop over hundreds of tensors exceeds the depth to which MindSpore unrolls.
add_to = ops.MultitypeFuncGraph("add_to")
clear = ops.MultitypeFuncGraph("clear")


@add_to.register("Tensor", "Tensor")
def _add_to(buffer, gradient):
    return ops.assign_add(buffer, gradient)


@clear.register("Tensor")
def _clear(buffer):
    """Set to zero, also what is not finite, by a formula that MindSpore does not fold.

    `ops.zeros_like` becomes a constant: as much memory as all gradients, for as long as the graph lives.
    """
    return ops.assign(buffer, ops.cast(buffer < buffer, ms.float32))


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

    def randomness(self, key, first_row, batch_size, length):
        """The dropout key and the logical positions (B * T, 1) of B rows of T tokens."""
        if not self.has_dropout:
            return None
        rows = (first_row + ops.arange(batch_size).astype(ms.int32)).reshape(-1, 1) * length
        return key, (rows + ops.arange(length).astype(ms.int32).reshape(1, -1)).reshape(-1, 1)

    def scaled_loss(self, ids, weights, key, first_row, loss_scale):
        """The loss of one micro batch, times the loss scale."""
        return self.loss(ids, weights, self.randomness(key, first_row, *weights.shape)) * loss_scale

    def construct(self, ids, weights, key, first_row, loss_scale):
        """-> scaled loss, scaled gradients."""
        return ms.value_and_grad(self.scaled_loss, None, self.parameters)(ids, weights, key, first_row, loss_scale)


class Update(nn.Cell):
    """Reduction over the processes, clipping, guard and optimizer.

    Where the global gradient norm is not finite, parameters and optimizer states stay as they are, bit for bit.

    Args:
        optimizer: updates its parameters in place.
        reduction: brings the processes' gradients together; None in a run of one process.
        grad_clip: largest global gradient norm, None for no clipping.
    """

    def __init__(self, optimizer: AdamW, reduction: nn.Cell | None, grad_clip: float | None):
        super().__init__(auto_prefix=False)
        self.optimizer, self.reduction, self.grad_clip = optimizer, reduction, grad_clip
        self.for_each, self.square_sum = ops.HyperMap(), optimizer.backend.square_sum()

    def construct(self, gradients, loss, share, loss_scale, rate, eps, keep):
        """-> unscaled loss, global norm of the unscaled gradients before clipping, whether it was finite, and the
        share of the batch's tokens that counted.
        """
        if self.reduction is None:
            squares = ops.addn(self.for_each(self.square_sum, gradients))
        else:
            gradients, squares, loss, share = self.reduction(gradients, loss, share)
        scale = loss_scale * share
        norm = ops.sqrt(squares) / scale
        finite = ops.isfinite(norm)
        factor = 1.0 / scale
        if self.grad_clip is not None:
            factor = factor * ops.minimum(self.grad_clip / (norm + 1e-6), Tensor(1.0, ms.float32))
        self.optimizer(gradients, factor, finite, rate, eps, keep)
        return loss / scale, norm, finite, share


class WholeStep(nn.Cell):
    """The update of a batch that fits into one forward pass, as one graph."""

    def __init__(self, gradients: Gradients, update: Update):
        super().__init__(auto_prefix=False)
        self.gradients, self.update = gradients, update

    def construct(self, ids, weights, key, first_row, loss_scale, share, rate, eps, keep):
        """-> as `Update`."""
        loss, gradients = self.gradients(ids, weights, key, first_row, loss_scale)
        return self.update(gradients, loss, share, loss_scale, rate, eps, keep)


class Accumulation(nn.Cell):
    """Adds a micro batch's loss and gradients to fp32 sums."""

    def __init__(self, gradients: Gradients, sums: Sums):
        super().__init__(auto_prefix=False)
        self.gradients, self.sums = gradients, sums

    def construct(self, ids, weights, key, first_row, loss_scale):
        """-> the scaled sum of losses."""
        loss, gradients = self.gradients(ids, weights, key, first_row, loss_scale)
        return self.sums(loss, gradients)


class Sums(nn.Cell):
    """fp32 sums of the micro batches' losses and gradients."""

    def __init__(self, parameters: list[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss = Parameter(Tensor(0.0, ms.float32), name="sum.loss", requires_grad=False)
        self.gradients = ms.ParameterTuple(
            Parameter(initializer("zeros", p.shape, ms.float32), name=f"sum.{p.name}", requires_grad=False)
            for p in parameters
        )
        self.for_each = ops.HyperMap()

    def construct(self, loss, gradients):
        """Add both -> the sum of losses."""
        self.for_each(add_to, self.gradients, gradients)
        return ops.assign_add(self.loss, loss)


class UpdateFromSums(nn.Cell):
    """The update by accumulated gradients, which are cleared."""

    def __init__(self, update: Update, sums: Sums):
        super().__init__(auto_prefix=False)
        self.update, self.sums, self.for_each = update, sums, ops.HyperMap()

    def construct(self, share, loss_scale, rate, eps, keep):
        """-> as `Update`."""
        found = self.update(self.sums.gradients, self.sums.loss + 0.0, share, loss_scale, rate, eps, keep)
        self.for_each(clear, self.sums.gradients)
        ops.assign(self.sums.loss, Tensor(0.0, ms.float32))
        return found


class UpdateResult(NamedTuple):
    """What an update found: loss, global gradient norm before clipping (both unscaled), whether the norm was finite,
    and the share of the batch's tokens that counted.
    """

    loss: float
    norm: float
    finite: bool
    share: float


def found(outputs: tuple[Tensor, ...]) -> UpdateResult:
    """`Update`'s outputs on the host."""
    loss, norm, finite, share = (value.asnumpy() for value in outputs)
    return UpdateResult(float(loss), float(norm), bool(finite), float(share))


class TrainStep:
    """An optimizer update of a global batch.

    One graph where the batch is one micro batch. Where micro batches accumulate, two: one that each micro batch runs
    through and one that updates. A loop inside one graph does it as well, but MindSpore's recomputation does not
    reach into a loop's body (tests/ascend).

    Args:
        loss: a Cell of (ids, weights, randomness) -> scalar fp32.
        parameters: what is differentiated by, in the order in which `optimizer` updates.
        optimizer: updates its parameters in place.
        num_micro_batches: A, forward passes an update.
        grad_clip: largest global gradient norm, None for no clipping.
        has_dropout: whether the loss draws random numbers.
        reduction: of gradients over processes; None in a run of one.
        publication: run after each update, where the optimizer's parameters are shares of the model's.
    """

    def __init__(
        self,
        loss: nn.Cell,
        parameters: list[Parameter],
        optimizer: AdamW,
        num_micro_batches: int,
        grad_clip: float | None,
        has_dropout: bool,
        reduction: nn.Cell | None = None,
        publication: nn.Cell | None = None,
    ):
        gradients = Gradients(loss, ms.ParameterTuple(parameters), has_dropout)
        update = Update(optimizer, reduction, grad_clip)
        self.whole = self.accumulation = self.update = None
        self.publication = publication
        if num_micro_batches == 1:
            self.whole = WholeStep(gradients, update)
        else:
            sums = Sums(parameters)
            self.accumulation, self.update = Accumulation(gradients, sums), UpdateFromSums(update, sums)
        self.is_compiled = False

    def graphs(self, ids, weights, key, loss_scale, *scalars) -> list[tuple[nn.Cell, tuple[Tensor, ...]]]:
        """The graphs and example inputs; arguments as in `__call__`."""
        micro_batch = (Tensor(ids[0]), Tensor(weights[0]), key, Tensor(0, ms.int32), loss_scale)
        share = Tensor(1.0, ms.float32)
        if self.whole is not None:
            graphs = [(self.whole, (*micro_batch, share, *scalars))]
        else:
            graphs = [(self.accumulation, micro_batch), (self.update, (share, loss_scale, *scalars))]
        return graphs if self.publication is None else [*graphs, (self.publication, ())]

    def compile(self, *inputs) -> None:
        """Compile the graphs, so that the first step takes no longer than another; arguments as in `__call__`."""
        for cell, example in self.graphs(*inputs):
            cell.compile(*example)
        self.is_compiled = True

    def __call__(
        self,
        ids: np.ndarray,
        weights: np.ndarray,
        key: Tensor,
        loss_scale: Tensor,
        *scalars: Tensor,
        first_row: int = 0,
        share: float = 1.0,
    ) -> UpdateResult:
        """One update.

        Args:
            ids: (A, B, T + 1) int32, this process' rows of the global batch; or what the loss takes in their place.
            weights: (A, B, T) fp32, a counted token's share of all the global batch's tokens.
            key: int32 scalar of (seed, step), for dropout.
            loss_scale: fp32 scalar, 1 unless the precision is fp16.
            scalars: `AdamW.scalars`.
            first_row: the number of the first row within the global batch.
            share: the sum of `weights`.
        """
        share_tensor = Tensor(share, ms.float32)
        if self.whole is not None:
            row = Tensor(first_row, ms.int32)
            outputs = self.whole(Tensor(ids[0]), Tensor(weights[0]), key, row, loss_scale, share_tensor, *scalars)
        else:
            for index in range(len(ids)):
                row = Tensor(first_row + index * ids.shape[1], ms.int32)
                self.accumulation(Tensor(ids[index]), Tensor(weights[index]), key, row, loss_scale)
            outputs = self.update(share_tensor, loss_scale, *scalars)
        if self.publication is not None:
            self.publication()
        return found(outputs)
