"""Sums of squares of each gradient of an update, summed over the processes as the update sums it.

If micro batches accumulate, the sums are there before the update reads them; else a second backward pass of the same
batch computes them. Either way the graphs of training are the same as without.
"""

from __future__ import annotations

from mindspore import nn, ops

from gpt2x.parallel.full_sharding import Blocks, Stack
from gpt2x.parallel.gradient_reduction import GradientReduction, LocalParameter
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.statistics.tensors import Squares, square
from gpt2x.train.step import GraphStep, StepInputs
from gpt2x.train.update import Gradients, GradientSums


class GradientSquares(nn.Cell):
    """Gradients of this process -> the sum of squares of each gradient of the global batch, (len(gradients),).

    Args:
        num_gradients: how many to read, from the first on; the others are stacks.
        reduction: sums gradients over the processes; None if that is done, or if there is only one process.
        square_sum: of the backend.
    """

    def __init__(self, num_gradients: int, reduction: GradientReduction | None, square_sum: ops.MultitypeFuncGraph):
        super().__init__(auto_prefix=False)
        self.num_gradients, self.reduction = num_gradients, reduction
        self.for_each, self.square_sum = ops.HyperMap(), square_sum

    def construct(self, gradients):
        """gradients: one per parameter -> (len(gradients),) fp32."""
        gradients = gradients[: self.num_gradients]
        if self.reduction is not None:
            gradients, _ = self.reduction.reduce(gradients)
        return ops.stack(self.for_each(self.square_sum, gradients))


class SquaresOfBatch(nn.Cell):
    """Forward and backward of a batch of one micro batch -> as `GradientSquares`."""

    def __init__(self, gradients: Gradients, squares: GradientSquares):
        super().__init__(auto_prefix=False)
        self.gradients, self.squares = gradients, squares

    def construct(self, ids, weights, starts, key, first_row, loss_scale):
        """Arguments of `Gradients`."""
        _, gradients = self.gradients(ids, weights, starts, key, first_row, loss_scale)
        return self.squares(gradients)


class SquaresOfSums(nn.Cell):
    """Accumulated gradients -> as `GradientSquares`."""

    def __init__(self, sums: GradientSums, squares: GradientSquares):
        super().__init__(auto_prefix=False)
        self.sums, self.squares = sums, squares

    def construct(self):
        """Read the sums."""
        return self.squares(self.sums.gradients)


class GradientMeter:
    """The sums of squares that this process counts; over all processes they are those of the global batch.

    Args:
        step: the update.
        trained: the trained parameters of this process, without those of `blocks`.
        mesh: the processes.
        blocks: those of this process if their weights are split.
    """

    def __init__(self, step: GraphStep, trained: list[LocalParameter], mesh: Mesh, blocks: Blocks | None):
        self.sums, self.num_outer = step.sums, len(trained)
        coordinates = mesh.coordinates
        is_first_set = coordinates.data < coordinates.parallel.shards  # the others have copies
        self.names = [local.name if is_first_set and local.counts_in_norm(mesh) else None for local in trained]
        self.stacks = blocks.trained if blocks else ()
        self.counts_stacks = is_first_set
        self.cell: nn.Cell | None = None
        if trained:
            squares = GradientSquares(len(trained), step.open_reduction, step.update.square_sum)
            self.cell = SquaresOfSums(step.sums, squares) if step.sums else SquaresOfBatch(step.gradients, squares)

    def measure(self, inputs: StepInputs) -> Squares:
        """Return sums of squares of gradients times loss scale and counted fraction.

        Call it within `GraphStep`, before the parameters change; every process calls it.
        """
        result: Squares = {}
        if self.cell is not None:
            values = self.cell(*(() if self.sums else inputs.micro_batch(0))).asnumpy().tolist()
            result = {name: value for name, value in zip(self.names, values, strict=True) if name is not None}
        if self.sums:
            of_stacks = self.sums.gradients[self.num_outer :]
            for stack, gradient in zip(self.stacks, of_stacks, strict=True):
                if self.counts_stacks and stack.is_owned:
                    result |= member_squares(stack, gradient.asnumpy())
        return result


def member_squares(stack: Stack, values) -> Squares:
    """Return the sum of squares of each tensor's part of an array of a stack's shape."""
    rows, start, result = values.reshape(stack.num_blocks, -1), 0, {}
    for member in stack.members:
        for block, name in enumerate(member.names):
            result[name] = square(rows[block, start : start + member.size])
        start += member.size
    return result
