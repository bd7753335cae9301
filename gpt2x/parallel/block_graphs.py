"""Graphs of full sharding: one block forward or backward, while the weights of the next are gathered.

Legend: B batch, T tokens, t tokens of this process, D hidden, n processes that split a tensor, r rows of a tensor on
each of them, S dropouts of a block.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gpt2x.model.gpt2 import dropout_randomness
from gpt2x.parallel.collectives import AllGather, AllReduce, ReduceScatter
from gpt2x.parallel.full_sharding import NUM_SLOTS, Blocks, Stack
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.tensor import TensorParallelGPT2


class Packing(nn.Cell):
    """A slot's tensors of one dtype as a bucket, whose part k is what process k of the n keeps, and back.

    Args:
        shapes: of the tensors.
        shards: n.
    """

    def __init__(self, shapes: tuple[tuple[int, ...], ...], shards: int):
        super().__init__(auto_prefix=False)
        self.shapes, self.shards = shapes, shards
        rows = [-(-shape[0] // shards) for shape in shapes]
        self.kept_shapes = tuple((count, *shape[1:]) for count, shape in zip(rows, shapes, strict=True))
        self.sizes = tuple(int(np.prod(shape)) for shape in self.kept_shapes)
        self.padding = tuple(count * shards - shape[0] for count, shape in zip(rows, shapes, strict=True))
        self.zeros = ops.Zeros()

    def pack(self, tensors):
        """Tensors of `shapes` -> (n, sum of sizes)."""
        parts = ()
        for index, padding in enumerate(self.padding):
            x = tensors[index]
            if padding:
                x = ops.concat((x, self.zeros((padding, *self.shapes[index][1:]), x.dtype)), 0)
            parts = (*parts, x.reshape(self.shards, -1))
        return parts[0] if len(parts) == 1 else ops.concat(parts, 1)

    def unpack(self, bucket):
        """(n, sum of sizes) -> tensors of `shapes`."""
        tensors = ()
        for index, part in enumerate(self.split(bucket)):
            x = part.reshape(self.kept_shapes[index][0] * self.shards, *self.shapes[index][1:])
            tensors = (*tensors, x[: self.shapes[index][0]] if self.padding[index] else x)
        return tensors

    def pack_kept(self, tensors):
        """Tensors of `kept_shapes` -> (1, sum of sizes)."""
        parts = ()
        for x in tensors:
            parts = (*parts, x.reshape(1, -1))
        return parts[0] if len(parts) == 1 else ops.concat(parts, 1)

    def unpack_kept(self, bucket):
        """(1, sum of sizes) -> tensors of `kept_shapes`."""
        tensors = ()
        for index, part in enumerate(self.split(bucket)):
            tensors = (*tensors, part.reshape(self.kept_shapes[index]))
        return tensors

    def split(self, bucket):
        """(..., sum of sizes) -> one part per tensor."""
        return (bucket,) if len(self.sizes) == 1 else ops.split(bucket, self.sizes, 1)


def buckets_of(stacks: tuple[Stack, ...], parameters: tuple[Parameter, ...]) -> tuple[tuple[int, ...], ...]:
    """Return the numbers of the stacks whose tensors travel together: those of one dtype in a slot."""
    dtypes = list(dict.fromkeys(parameter.dtype for parameter in parameters[: len(stacks)]))
    return tuple(tuple(index for index in range(len(stacks)) if parameters[index].dtype == dtype) for dtype in dtypes)


def rows_of(block, num_rows: int):
    """Return the numbers of a block's rows in a stack of `num_rows` per block: block int32 scalar -> (r,) int32."""
    return block * num_rows + ops.arange(num_rows).astype(ms.int32)


class Fill(nn.Cell):
    """Gathers the weights of a block into a slot."""

    def __init__(self, blocks: Blocks, slot: int, mesh: Mesh):
        super().__init__(auto_prefix=False)
        parameters = blocks.slots[slot]
        self.stacks = ms.ParameterTuple([stack.parameter for stack in blocks.stacks])
        self.targets, self.sites = ms.ParameterTuple(parameters), blocks.sites[slot]
        self.numbers = Tensor(blocks.site_numbers) if self.sites else None
        self.num_rows = tuple(len(stack.rows) for stack in blocks.stacks)
        self.buckets = buckets_of(blocks.stacks, parameters)
        shards = mesh.shard.size if mesh.shard else 1
        self.packings = tuple(
            Packing(tuple(blocks.stacks[index].shape for index in bucket), shards) for bucket in self.buckets
        )
        self.dtypes = tuple(parameter.dtype for parameter in parameters)
        self.gather = AllGather(mesh.shard)

    def construct(self, block):
        """block: int32 scalar, the number of the block -> it."""
        for bucket, packing in zip(self.buckets, self.packings):  # noqa: B905  (graphs know no `strict`)
            kept = ()
            for index in bucket:
                rows = ops.gather(self.stacks[index], rows_of(block, self.num_rows[index]), 0)
                kept = (*kept, ops.cast(rows, self.dtypes[index]))
            tensors = packing.unpack(self.gather(packing.pack_kept(kept)))
            for place, index in enumerate(bucket):
                ops.assign(self.targets[index], tensors[place])
        if self.numbers is not None:
            numbers = ops.gather(self.numbers, block, 0)
            for place, site in enumerate(self.sites):
                ops.assign(site, numbers[place : place + 1])
        return block


class GradientShards(nn.Cell):
    """Sums a block's gradients over the replicas, and adds what this process keeps of them to its sums.

    Args:
        blocks: the blocks.
        slot: whose parameters the gradients are of.
        sums: the buffers of the trained stacks, in their order.
        mesh: the processes.
        dtype: in which gradients of matrices travel; None: the compute dtype.
    """

    def __init__(self, blocks: Blocks, slot: int, sums: tuple[Parameter, ...], mesh: Mesh, dtype=None):
        super().__init__(auto_prefix=False)
        stacks, parameters = blocks.trained, blocks.slots[slot]
        self.sums, self.dtype = ms.ParameterTuple(sums), dtype
        self.num_rows = tuple(len(stack.rows) for stack in stacks)
        self.buckets = buckets_of(stacks, parameters)
        shards = mesh.shard.size if mesh.shard else 1
        self.packings = tuple(
            Packing(tuple(stacks[index].shape for index in bucket), shards) for bucket in self.buckets
        )
        self.partial = tuple(index for index, stack in enumerate(stacks) if stack.is_partial)
        self.sum_tokens = AllReduce(mesh.tensor if self.partial else None)
        self.scatter, self.sum_replicas, self.add = ReduceScatter(mesh.shard), AllReduce(mesh.replica), ops.ScatterAdd()

    def construct(self, gradients, block):
        """gradients: of the slot's trained parameters; block: int32 scalar -> it."""
        for index in self.partial:
            gradients = (*gradients[:index], self.sum_tokens(gradients[index]), *gradients[index + 1 :])
        for bucket, packing in zip(self.buckets, self.packings):  # noqa: B905
            tensors = ()
            for index in bucket:
                tensors = (*tensors, gradients[index])
            packed = packing.pack(tensors)
            if self.dtype is not None:
                packed = ops.cast(packed, self.dtype)
            kept = packing.unpack_kept(self.sum_replicas(self.scatter(packed)))
            for place, index in enumerate(bucket):
                rows = rows_of(block, self.num_rows[index])
                self.add(self.sums[index], rows, ops.cast(kept[place], ms.float32))
        return block


class BlockCell(nn.Cell):
    """What forward and backward of a block share.

    Args:
        blocks: the blocks.
        slot: the number of the slot that has the block's weights.
        has_dropout: whether random numbers are drawn.
        mesh: the processes.
    """

    def __init__(self, blocks: Blocks, slot: int, has_dropout: bool, mesh: Mesh):
        super().__init__(auto_prefix=False)
        self.block, self.has_dropout, net = blocks.net.h[slot], has_dropout, blocks.net
        self.fill = Fill(blocks, (slot + 1) % NUM_SLOTS, mesh)
        self.net, self.spreads, self.split = net, isinstance(net, TensorParallelGPT2), 1
        if self.spreads and net.splits_tokens:
            self.split = net.tensor_size

    def compute(self, x, key, first_row):
        """Return the block's output: x (B, t, D) -> (B, t, D)."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, x.shape[0], x.shape[1] * self.split)
        if self.spreads:
            randomness = self.net.spread(randomness, x.shape[0])
        return self.block(x, randomness)


class BlockForward(BlockCell):
    """A block's output, while the next block's weights are gathered."""

    def construct(self, x, key, first_row, following):
        """x (B, t, D), key and first_row as in `MicroBatch`, following: number of the next block -> (B, t, D)."""
        self.fill(following)
        return self.compute(x, key, first_row)


class BlockBackward(BlockCell):
    """A block's gradients: those of the product of its output and the output's gradient."""

    def __init__(self, blocks: Blocks, slot: int, has_dropout: bool, mesh: Mesh, sums: list[Parameter], reduce_dtype):
        super().__init__(blocks, slot, has_dropout, mesh)
        num_trained = len(blocks.trained)
        self.parameters = ms.ParameterTuple(blocks.slots[slot][:num_trained]) if num_trained else None
        self.shards = GradientShards(blocks, slot, tuple(sums), mesh, reduce_dtype) if num_trained else None

    def product(self, x, dy, key, first_row):
        """Return the scalar whose gradients are those of the loss; fp32, so that fp16 cannot overflow."""
        y = self.compute(x, key, first_row)
        return ops.reduce_sum(ops.cast(y, ms.float32) * ops.cast(dy, ms.float32))

    def construct(self, x, dy, key, first_row, block, following):
        """x, dy (B, t, D); block: the number of this block -> the gradient of x (B, t, D)."""
        self.fill(following)
        if self.shards is None:
            return ms.grad(self.product, 0)(x, dy, key, first_row)
        dx, gradients = ms.grad(self.product, 0, self.parameters)(x, dy, key, first_row)
        self.shards(gradients, block)
        return dx


class Turns:
    """Which block computes in which slot, and which one is gathered meanwhile."""

    def __init__(self, blocks: Blocks, mesh: Mesh):
        self.numbers = [Tensor(block, ms.int32) for block in range(blocks.num_blocks)]
        self.first = Fill(blocks, 0, mesh)
        self.order: list[int] = []
        self.at = 0

    def begin(self, order: list[int]) -> None:
        """Gather the first of the blocks that compute in this order."""
        self.order, self.at = order, 0
        self.first(self.numbers[order[0]])

    def take(self) -> tuple[int, Tensor]:
        """Return the slot of the block whose turn it is, and the block after it; the last one comes again."""
        slot, self.at = self.at % NUM_SLOTS, self.at + 1
        return slot, self.numbers[self.order[min(self.at, len(self.order) - 1)]]
