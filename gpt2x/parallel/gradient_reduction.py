"""Gradient reduction over all processes, and the all-gather of updated parameter shards (ZeRO-1).

`GradientReduction` also sums the gradient of a tied embedding over the first and the last stage, and that of layer
norms under sequence parallelism over the tensor axis. Tensors are communicated in few, large buckets. Each bucket waits
for the one before it, so that all processes communicate in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer
from mindspore.ops.auto_generate import SplitWithSize  # ops.split compiles to a slice per part

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.collectives import AllGather, AllReduce, Group, ReduceScatter
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Placement, has_partial_gradient, owns, shard_rows

BUCKET_ELEMENTS = 8 << 20  # 32 MB in fp32
BUCKET_TENSORS = 64  # MindSpore 2.10 nests what follows a split, and rejects 256 of them
RUN = 16  # buckets per loop

flatten = ops.MultitypeFuncGraph("flatten")
restore = ops.MultitypeFuncGraph("restore")
assign = ops.MultitypeFuncGraph("assign")


@flatten.register("Number", "Tensor")
def _flatten(parts, x):
    return x.reshape(parts, -1)


@restore.register("Tensor", "Tensor")
def _restore(piece, like):
    return piece.reshape(like.shape)


@assign.register("Tensor", "Tensor")
def _assign(parameter, value):
    return ops.assign(parameter, value.reshape(parameter.shape))


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this process.

    Attributes:
        name: of the logical tensor.
        placement: which part of it `parameter` is.
        parameter: the tensor that the model computes with.
        trained: the tensor that the optimizer updates: `parameter`, or this process's shard of its rows (ZeRO-1).
        rows: the rows of the shard; None if there is no shard.
        is_owned: whether this copy, of all within a replica, is counted in the norm and written to checkpoints.
        is_partial: whether it is a copy with a partial gradient, from this process's slice of the tokens (sequence
            parallelism) or, for a factor of an adapter, of the other factor.
        is_tied: whether the first and the last stage both have it, each with a part of its gradient.
    """

    name: str
    placement: Placement
    parameter: Parameter
    trained: Parameter
    rows: range | None
    is_owned: bool
    is_partial: bool
    is_tied: bool

    @property
    def trained_placement(self) -> Placement:
        """Return which part of the logical tensor `trained` is."""
        return self.placement if self.rows is None else self.placement.rows(self.rows.start, self.rows.stop)

    def counts_in_norm(self, mesh: Mesh) -> bool:
        """Return whether this copy counts within `mesh.norm`: sharded tensors on every shard, others on the first."""
        return self.is_owned and (self.rows is not None or mesh.coordinates.shard == 0)


def local_parameters(
    net: GPT2, model: ModelConfig, mesh: Mesh, trained: Mapping[str, Placement]
) -> list[LocalParameter]:
    """Return the parameters that this process trains: sharded ones first, partial gradients side by side.

    Args:
        net: this process's part of the model.
        model: its configuration.
        mesh: the processes.
        trained: placements of the parameters of `net` that are trained, by name; the rest is frozen.
    """
    coordinates = mesh.coordinates
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    local = []
    for name, placement in trained.items():
        parameter, rows = parameters[name], shard_rows(placement.shape, coordinates)
        updated = parameter
        if rows is not None:
            shape = (len(rows), *placement.shape[1:])
            updated = Parameter(initializer("zeros", shape, ms.float32), name=f"master.{name}")
        partial = has_partial_gradient(name, coordinates)
        tied = name == "wte.weight" and model.tie_embeddings and mesh.embedding is not None
        local.append(LocalParameter(name, placement, parameter, updated, rows, owns(name, coordinates), partial, tied))
    sharded = [each for each in local if each.rows is not None]
    whole = [each for each in local if each.rows is None]
    return [
        *(each for each in sharded if not each.is_partial),
        *(each for each in sharded if each.is_partial),
        *(each for each in whole if each.is_partial),
        *(each for each in whole if not each.is_partial),
    ]


class Buckets(nn.Cell):
    """A collective on many tensors of (parts, k), joined along dim 1 to few buckets of about BUCKET_ELEMENTS."""

    def __init__(self, operation: nn.Cell, sizes: list[int], capacity: int = BUCKET_ELEMENTS):
        super().__init__(auto_prefix=False)
        self.operation, self.split = operation, SplitWithSize()
        bounds, start, total = [], 0, 0
        for index, size in enumerate(sizes):
            if index > start and (total + size > capacity or index - start == BUCKET_TENSORS):
                bounds.append((start, index))
                start, total = index, 0
            total += size
        bounds.append((start, len(sizes)))
        # Loops over some at a time: MindSpore nests what follows in a loop and rejects 1000 levels; 13B has 320 buckets
        self.runs = tuple(tuple(bounds[at : at + RUN]) for at in range(0, len(bounds), RUN))
        self.sizes = tuple(sizes)

    def construct(self, tensors, after=None):
        """tensors: each (parts, k) -> each (the operation's parts, k); the first waits for `after`."""
        results, previous = (), after
        for bounds in self.runs:
            results = results + self.communicate(tensors, bounds, previous)
            previous = results[-1]
        return results

    def communicate(self, tensors, bounds, previous):
        """Communicate some of the buckets after the tensor `previous`."""
        results = ()
        for start, stop in bounds:
            bucket = tensors[start] if stop == start + 1 else ops.concat(tensors[start:stop], 1)
            bucket = self.operation(after(bucket, previous))
            previous = bucket
            results = results + ((bucket,) if stop == start + 1 else self.split(bucket, self.sizes[start:stop], 1))
        return results


def after(x, previous):
    """Return x, but not before the tensor `previous` is computed; None: at once."""
    return x if previous is None else ops.depend(x, previous)


def counted(square_sum: ops.MultitypeFuncGraph) -> ops.MultitypeFuncGraph:
    """Return `square_sum` of gradients that count on this process; 0 for others."""
    counted_square_sum = ops.MultitypeFuncGraph("counted_square_sum")

    @counted_square_sum.register("Tensor", "Bool")
    def _counted_square_sum(gradient, counts):
        return square_sum(gradient) if counts else Tensor(0.0, ms.float32)

    return counted_square_sum


class GradientReduction(nn.Cell):
    """Gradients of this process -> gradients of the whole batch, for the tensors that this process updates.

    In this order: partial gradients over the tensor axis; the tied embedding's over the first and the last stage; a
    reduce-scatter (ZeRO-1) or an all-reduce over the data axis; the sum of squares over the group `norm`.
    Each collective waits for the one before it (`previous`), whether or not it needs its values: the graphs of the
    processes differ, and two processes that ran two collectives in different orders would wait for ever.

    Args:
        local_parameters: whose gradients are to be reduced.
        mesh: the processes.
        reduced: for each gradient after those, which is split and summed already, whether this process' copy counts in
            the norm.
        square_sum: of the backend.
    """

    def __init__(
        self,
        local_parameters: list[LocalParameter],
        mesh: Mesh,
        square_sum: ops.MultitypeFuncGraph,
        reduced: tuple[bool, ...] = (),
    ):
        super().__init__(auto_prefix=False)
        self.square_sum = counted(square_sum)
        self.num_to_reduce = len(local_parameters)
        coordinates = mesh.coordinates
        shards = coordinates.parallel.shards
        sizes = [each.parameter.size for each in local_parameters]
        self.num_sharded = num_sharded = sum(each.rows is not None for each in local_parameters)
        self.trained = ms.ParameterTuple([each.trained for each in local_parameters])
        self.for_each, self.shards = ops.HyperMap(), shards
        partial = [index for index, each in enumerate(local_parameters) if each.is_partial]
        self.partial = (partial[0], partial[-1] + 1) if partial else None
        self.sum_tokens = Buckets(AllReduce(mesh.tensor), [sizes[index] for index in partial]) if partial else None
        self.tied = next((index for index, each in enumerate(local_parameters) if each.is_tied), None)
        self.sum_tied = AllReduce(mesh.embedding)
        self.scatter = self.sum = self.sum_replicas = None
        if num_sharded:
            sharded = [size // shards for size in sizes[:num_sharded]]
            self.scatter = Buckets(ReduceScatter(mesh.shard), sharded, BUCKET_ELEMENTS // shards)
            self.sum_replicas = Buckets(AllReduce(mesh.replica), sharded) if mesh.replica else None
        if mesh.data and num_sharded < len(local_parameters):
            self.sum = Buckets(AllReduce(mesh.data), sizes[num_sharded:])
        self.sum_data = AllReduce(mesh.data) if mesh.data else None
        self.sum_norm = AllReduce(mesh.norm) if mesh.norm else None
        self.counts = (*(each.counts_in_norm(mesh) for each in local_parameters), *reduced)
        self.counts_loss = coordinates.is_last_stage and coordinates.tensor == 0 and coordinates.shard == 0

    def construct(self, gradients, loss, counted_fraction):
        """-> gradients of the trained parameters; the sum of squares of all gradients; loss and counted fraction of the
        whole batch.
        """
        gradients, previous = self.reduce(gradients)
        return self.totals(gradients, loss, counted_fraction, previous)

    def reduce(self, gradients):
        """Return the gradients of the trained parameters, and the last tensor that was communicated."""
        gradients, reduced, previous = gradients[: self.num_to_reduce], gradients[self.num_to_reduce :], None
        if self.partial is not None:
            first, last = self.partial
            part = gradients[first:last]
            summed = self.sum_tokens(self.for_each(ops.partial(flatten, 1), part))
            gradients = gradients[:first] + self.for_each(restore, summed, part) + gradients[last:]
            previous = summed[-1]
        if self.tied is not None:
            previous = self.sum_tied(after(gradients[self.tied], previous))
            gradients = gradients[: self.tied] + (previous,) + gradients[self.tied + 1 :]
        sharded, whole = gradients[: self.num_sharded], gradients[self.num_sharded :]
        if self.scatter is not None:
            sharded = self.scatter(self.for_each(ops.partial(flatten, self.shards), sharded), previous)
            if self.sum_replicas is not None:
                sharded = self.sum_replicas(sharded, sharded[-1])
            previous = sharded[-1]
            sharded = self.for_each(restore, sharded, self.trained[: self.num_sharded])
        if self.sum is not None:
            summed = self.sum(self.for_each(ops.partial(flatten, 1), whole), previous)
            whole, previous = self.for_each(restore, summed, whole), summed[-1]
        return sharded + whole + reduced, previous

    def totals(self, gradients, loss, counted_fraction, previous=None):
        """Return what `construct` does, for gradients of the trained parameters."""
        if self.sum_data is not None:
            previous = self.sum_data(after(ops.stack((loss, counted_fraction)), previous))
            loss, counted_fraction = previous[0], previous[1]
        squares = self.for_each(self.square_sum, gradients, self.counts)
        squares = squares[0] if len(squares) == 1 else ops.addn(squares)  # AddN has no kernel for a single constant
        if self.sum_norm is not None:
            counted_loss = loss if self.counts_loss else ops.zeros_like(loss)
            pair = self.sum_norm(after(ops.stack((squares, counted_loss)), previous))
            squares, loss = pair[0], pair[1]
        return gradients, squares, loss, counted_fraction


class ParameterAllGather(nn.Cell):
    """Updated shards -> the parameters that the model computes with, on every replica (ZeRO-1)."""

    def __init__(self, local_parameters: list[LocalParameter], group: Group):
        super().__init__(auto_prefix=False)
        sharded = [each for each in local_parameters if each.rows is not None]
        self.parameters = ms.ParameterTuple([each.parameter for each in sharded])
        self.trained = ms.ParameterTuple([each.trained for each in sharded])
        sizes = [each.trained.size for each in sharded]
        self.gather = Buckets(AllGather(group), sizes, BUCKET_ELEMENTS // group.size)
        self.for_each = ops.HyperMap()

    def construct(self):
        """Gather every parameter from its shards."""
        return self.for_each(assign, self.parameters, self.gather(self.for_each(ops.partial(flatten, 1), self.trained)))


class ReductionTotals(nn.Cell):
    """What is left of `GradientReduction` if gradients were reduced in every micro batch (ZeRO-2)."""

    def __init__(self, reduction: GradientReduction):
        super().__init__(auto_prefix=False)
        self.reduction = reduction

    def construct(self, gradients, loss, counted_fraction):
        """As `GradientReduction.construct`, for gradients of the trained parameters."""
        return self.reduction.totals(gradients, loss, counted_fraction)
