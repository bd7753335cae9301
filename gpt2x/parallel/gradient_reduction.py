"""Gradients of all processes brought together, and updated shares of the parameters given back.

Everything goes through few, large buckets; each waits for the one before it, so that all processes communicate in the
same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.config import ModelConfig
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.collectives import AllGather, AllReduce, Group, ReduceScatter
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import FACTORS, Placement, is_split, owns, shard_rows

BUCKET_ELEMENTS = 8 << 20  # 32 MB in fp32
RUN = 16  # buckets that one loop goes through

flatten = ops.MultitypeFuncGraph("flatten")
restore = ops.MultitypeFuncGraph("restore")
own_square_sum = ops.MultitypeFuncGraph("own_square_sum")
assign = ops.MultitypeFuncGraph("assign")


@flatten.register("Number", "Tensor")
def _flatten(parts, x):
    return x.reshape(parts, -1)


@restore.register("Tensor", "Tensor")
def _restore(piece, like):
    return piece.reshape(like.shape)


@own_square_sum.register("Tensor", "Bool")
def _own_square_sum(gradient, counts):
    if not counts:
        return Tensor(0.0, ms.float32)
    row = gradient.reshape(1, -1)
    return ops.matmul(row, row.reshape(-1, 1)).reshape(())


@assign.register("Tensor", "Tensor")
def _assign(parameter, value):
    return ops.assign(parameter, value.reshape(parameter.shape))


@dataclass(frozen=True)
class LocalParameter:
    """A parameter of this process.

    Attributes:
        name: of the logical tensor.
        placement: which part of it `parameter` is.
        parameter: what the model computes with.
        trained: what the optimizer updates: `parameter`, or this process' rows of it (ZeRO-1).
        rows: those rows; None where they are all.
        is_owned: of all copies within a replica, this one counts.
        is_partial: a copy whose gradient is of this process' share alone, of the tokens (sequence parallelism) or, for
            a factor of an adapter, of the other factor.
        is_tied: the first stage and the last both have it, each with a part of its gradient.
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
        """Which part of the logical tensor `trained` is."""
        return self.placement if self.rows is None else self.placement.rows(self.rows.start, self.rows.stop)


def local_parameters(
    net: GPT2, model: ModelConfig, mesh: Mesh, trained: Mapping[str, Placement]
) -> list[LocalParameter]:
    """The parameters that this process trains: those whose rows are shared first, partial gradients side by side.

    Args:
        net: this process' part of the model.
        model: its configuration.
        mesh: the processes.
        trained: what is trained of `net`, by name; the rest is frozen.
    """
    coordinates = mesh.coordinates
    parameters = {parameter.name: parameter for parameter in net.get_parameters()}
    found = []
    for name, placement in trained.items():
        parameter, rows = parameters[name], shard_rows(placement.shape, coordinates)
        updated = parameter
        if rows is not None:
            shape = (len(rows), *placement.shape[1:])
            updated = Parameter(initializer("zeros", shape, ms.float32), name=f"master.{name}")
        partial = coordinates.parallel.sequence_parallel and is_of_tokens(name)
        partial = partial or (
            coordinates.parallel.tensor > 1 and name.endswith(FACTORS) and not is_split(name, coordinates)
        )
        tied = name == "wte.weight" and model.tie_embeddings and mesh.embedding is not None
        found.append(LocalParameter(name, placement, parameter, updated, rows, owns(name, coordinates), partial, tied))
    shared = [held for held in found if held.rows is not None]
    whole = [held for held in found if held.rows is None]
    return [
        *(held for held in shared if not held.is_partial),
        *(held for held in shared if held.is_partial),
        *(held for held in whole if held.is_partial),
        *(held for held in whole if not held.is_partial),
    ]


def is_of_tokens(name: str) -> bool:
    """Whether a tensor acts on the tokens that sequence parallelism shares out: layer norms, biases after a sum."""
    return "ln_" in name or name.endswith("c_proj.bias")


class Buckets(nn.Cell):
    """A collective on many tensors of (parts, k) each, joined along dim 1 to a few of about BUCKET_ELEMENTS."""

    def __init__(self, operation: nn.Cell, sizes: list[int], capacity: int = BUCKET_ELEMENTS):
        super().__init__(auto_prefix=False)
        self.operation = operation
        bounds, start, total = [], 0, 0
        for index, size in enumerate(sizes):
            if index > start and total + size > capacity:
                bounds.append((start, index))
                start, total = index, 0
            total += size
        bounds.append((start, len(sizes)))
        # Loops over some at a time: MindSpore nests what follows in a loop and refuses 1000 levels; 13B has 320 buckets
        self.runs = tuple(tuple(bounds[at : at + RUN]) for at in range(0, len(bounds), RUN))
        self.sizes = tuple(sizes)

    def construct(self, tensors, after=None):
        """tensors: each (parts, k) -> each (the operation's parts, k); the first waits for `after`."""
        found, previous = (), after
        for bounds in self.runs:
            found = found + self.communicate(tensors, bounds, previous)
            previous = found[-1]
        return found

    def communicate(self, tensors, bounds, previous):
        """Some of the buckets, after the tensor `previous`."""
        found = ()
        for start, stop in bounds:
            bucket = tensors[start] if stop == start + 1 else ops.concat(tensors[start:stop], 1)
            bucket = self.operation(after(bucket, previous))
            previous = bucket
            found = found + ((bucket,) if stop == start + 1 else ops.split(bucket, self.sizes[start:stop], 1))
        return found


def after(x, previous):
    """x, not before the tensor `previous` is there; None: at once."""
    return x if previous is None else ops.depend(x, previous)


class GradientReduction(nn.Cell):
    """Gradients of this process -> gradients of the whole batch, for what this process updates.

    Each collective waits for the one before it (`previous`), whether or not it needs its values: the graphs of the
    processes differ, and two of them that took two collectives in different orders would wait for ever.
    """

    def __init__(self, held: list[LocalParameter], mesh: Mesh):
        super().__init__(auto_prefix=False)
        coordinates = mesh.coordinates
        shards = coordinates.parallel.optimizer_shards
        sizes = [part.parameter.size for part in held]
        self.num_shared = num_shared = sum(part.rows is not None for part in held)
        self.trained = ms.ParameterTuple([part.trained for part in held])
        self.for_each, self.shards = ops.HyperMap(), shards
        partial = [index for index, part in enumerate(held) if part.is_partial]
        self.partial = (partial[0], partial[-1] + 1) if partial else None
        self.sum_tokens = Buckets(AllReduce(mesh.tensor), [sizes[index] for index in partial]) if partial else None
        self.tied = next((index for index, part in enumerate(held) if part.is_tied), None)
        self.sum_tied = AllReduce(mesh.embedding)
        self.scatter = self.sum = self.sum_replicas = None
        if num_shared:
            shared = [size // shards for size in sizes[:num_shared]]
            self.scatter = Buckets(ReduceScatter(mesh.shard), shared, BUCKET_ELEMENTS // shards)
            self.sum_replicas = Buckets(AllReduce(mesh.replica), shared) if mesh.replica else None
        if mesh.data and num_shared < len(held):
            self.sum = Buckets(AllReduce(mesh.data), sizes[num_shared:])
        self.sum_data = AllReduce(mesh.data) if mesh.data else None
        self.sum_norm = AllReduce(mesh.norm) if mesh.norm else None
        # Each value counts once in the norm's group: shares on every shard, what is whole on the first.
        first = coordinates.shard == 0
        self.counts = tuple(part.is_owned and (part.rows is not None or first) for part in held)
        self.counts_loss = coordinates.is_last_stage and coordinates.tensor == 0 and first

    def construct(self, gradients, loss, share):
        """-> gradients of the trained parameters, the sum of all gradients' squares, the loss and the share of the
        counted tokens, both of the whole batch.
        """
        previous = None
        if self.partial is not None:
            first, last = self.partial
            part = gradients[first:last]
            summed = self.sum_tokens(self.for_each(ops.partial(flatten, 1), part))
            gradients = gradients[:first] + self.for_each(restore, summed, part) + gradients[last:]
            previous = summed[-1]
        if self.tied is not None:
            previous = self.sum_tied(after(gradients[self.tied], previous))
            gradients = gradients[: self.tied] + (previous,) + gradients[self.tied + 1 :]
        shared, whole = gradients[: self.num_shared], gradients[self.num_shared :]
        if self.scatter is not None:
            shared = self.scatter(self.for_each(ops.partial(flatten, self.shards), shared), previous)
            if self.sum_replicas is not None:
                shared = self.sum_replicas(shared, shared[-1])
            previous = shared[-1]
            shared = self.for_each(restore, shared, self.trained[: self.num_shared])
        if self.sum is not None:
            summed = self.sum(self.for_each(ops.partial(flatten, 1), whole), previous)
            whole, previous = self.for_each(restore, summed, whole), summed[-1]
        gradients = shared + whole
        if self.sum_data is not None:
            previous = self.sum_data(after(ops.stack((loss, share)), previous))
            loss, share = previous[0], previous[1]
        squares = self.for_each(own_square_sum, gradients, self.counts)
        squares = squares[0] if len(squares) == 1 else ops.addn(squares)  # AddN has no kernel for a single constant
        if self.sum_norm is not None:
            own_loss = loss if self.counts_loss else ops.zeros_like(loss)
            pair = self.sum_norm(after(ops.stack((squares, own_loss)), previous))
            squares, loss = pair[0], pair[1]
        return gradients, squares, loss, share


class ParameterAllGather(nn.Cell):
    """Updated rows -> the parameters that the model computes with, on every replica."""

    def __init__(self, held: list[LocalParameter], group: Group):
        super().__init__(auto_prefix=False)
        shared = [part for part in held if part.rows is not None]
        self.parameters = ms.ParameterTuple([part.parameter for part in shared])
        self.trained = ms.ParameterTuple([part.trained for part in shared])
        sizes = [part.trained.size for part in shared]
        self.gather = Buckets(AllGather(group), sizes, BUCKET_ELEMENTS // group.size)
        self.for_each = ops.HyperMap()

    def construct(self):
        """Gather every parameter from its shares."""
        return self.for_each(assign, self.parameters, self.gather(self.for_each(ops.partial(flatten, 1), self.trained)))
