"""Graphs of full sharding: one block forward or backward, while the weights of the next are gathered.

Legend: B batch, T tokens, t tokens of this process, D hidden, n processes that split a block's tensors, K values of a
block in a stack on each of them.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops.auto_generate import SplitWithSize  # ops.split compiles to a slice per part

from gpt2x.model.gpt2 import GPT2, dropout_randomness
from gpt2x.parallel.collectives import AllGather, AllReduce, ReduceScatter
from gpt2x.parallel.full_sharding import Blocks
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.tensor import TensorParallelGPT2


def row_of(stack, block, size: int):
    """Return what a stack, of whatever shape, has of a block: block int32 scalar -> (1, K)."""
    return ops.gather(stack.reshape(-1, size), block, 0).reshape(1, size)


class Fill(nn.Cell):
    """Gathers the weights of a block into a slot."""

    def __init__(self, blocks: Blocks, slot: int, mesh: Mesh):
        super().__init__(auto_prefix=False)
        self.stacks = ms.ParameterTuple([stack.parameter for stack in blocks.stacks])
        self.targets = tuple(ms.ParameterTuple(parameters) for parameters in blocks.slots[slot])
        self.dtypes = tuple(parameters[0].dtype for parameters in blocks.slots[slot])
        self.num_values = tuple(stack.num_values for stack in blocks.stacks)
        self.sizes = tuple(tuple(member.size for member in stack.members) for stack in blocks.stacks)
        num_shards = mesh.shard.size if mesh.shard else 1
        self.paddings = tuple(tuple(member.padding(num_shards) for member in stack.members) for stack in blocks.stacks)
        self.sites = blocks.sites[slot]
        self.numbers = Tensor(blocks.site_numbers) if self.sites else None
        self.gather, self.split = AllGather(mesh.shard), SplitWithSize()

    def construct(self, block):
        """block: int32 scalar, the number of the block -> it."""
        for index, sizes in enumerate(self.sizes):
            row = ops.cast(row_of(self.stacks[index], block, self.num_values[index]), self.dtypes[index])
            whole = self.gather(row)  # (n, K)
            parts = (whole,) if len(sizes) == 1 else self.split(whole, sizes, 1)
            for member, target in enumerate(self.targets[index]):
                values, padding = parts[member].reshape(-1, *target.shape[1:]), self.paddings[index][member]
                if padding:  # by a split, since a slice takes 40 times longer on the CPU
                    values = self.split(values, (target.shape[0], padding), 0)[0]
                ops.assign(target, values)
        if self.numbers is not None:
            numbers = ops.gather(self.numbers, block, 0)
            for number, site in enumerate(self.sites):
                ops.assign(site, numbers[number : number + 1])
        return block


class GradientShards(nn.Cell):
    """Sums a block's gradients over the replicas, and adds what this process keeps of them to its sums.

    Args:
        blocks: the blocks.
        sums: the buffers of the trained stacks, in their order.
        mesh: the processes.
        dtype: in which gradients travel; None: that of the slot.
    """

    def __init__(self, blocks: Blocks, sums: tuple[Parameter, ...], mesh: Mesh, dtype=None):
        super().__init__(auto_prefix=False)
        self.num_shards = mesh.shard.size if mesh.shard else 1
        self.sums, self.dtype = ms.ParameterTuple(sums), dtype
        self.num_values = tuple(stack.num_values for stack in blocks.trained)
        self.paddings = tuple(
            tuple(member.padding(self.num_shards) for member in stack.members) for stack in blocks.trained
        )
        self.is_matrix = tuple(len(stack.parameter.shape) == 2 for stack in blocks.trained)
        self.is_partial = tuple(stack.is_partial for stack in blocks.trained)
        self.sum_tokens, self.zeros = AllReduce(mesh.tensor), ops.Zeros()
        self.scatter, self.sum_replicas, self.add = ReduceScatter(mesh.shard), AllReduce(mesh.replica), ops.ScatterAdd()

    def packed(self, gradients, paddings):
        """Return gradients side by side, so that row k is what process k keeps: (n, K)."""
        parts = ()
        for member, padding in enumerate(paddings):
            x = gradients[member]
            if padding:
                x = ops.concat((x, self.zeros((padding, *x.shape[1:]), x.dtype)), 0)
            parts = (*parts, x.reshape(self.num_shards, -1))
        return parts[0] if len(parts) == 1 else ops.concat(parts, 1)

    def construct(self, gradients, block):
        """gradients: of the slot's trained parameters, stack after stack; block: int32 scalar -> it."""
        first = 0
        for index, paddings in enumerate(self.paddings):
            packed = self.packed(gradients[first : first + len(paddings)], paddings)
            first = first + len(paddings)
            if self.dtype is not None:
                packed = ops.cast(packed, self.dtype)
            if self.is_partial[index]:
                packed = self.sum_tokens(packed)
            kept = ops.cast(self.sum_replicas(self.scatter(packed)), ms.float32)  # (1, K)
            size = self.num_values[index]
            if self.is_matrix[index]:
                self.add(self.sums[index], block.reshape(1), kept)
            else:
                positions = block * size + ops.arange(size).astype(ms.int32)
                self.add(self.sums[index], positions, kept.reshape(-1))
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
        self.fill = Fill(blocks, 1 - slot, mesh) if len(blocks.slots) == 2 else None
        self.net, self.spreads, self.split = net, isinstance(net, TensorParallelGPT2), 1
        if self.spreads and net.splits_tokens:
            self.split = net.tensor_size

    def gather(self, following):
        """Gather the block `following` into the other slot, if there is one."""
        if self.fill is not None:
            self.fill(following)

    def compute(self, x, starts, key, first_row):
        """Return the block's output: x (B, t, D) -> (B, t, D)."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, x.shape[0], x.shape[1] * self.split)
        if self.spreads:
            randomness = self.net.spread(randomness, x.shape[0])
        return self.block(x, randomness, self.net.segments(starts))


class BlockForward(BlockCell):
    """A block's output, while the next block's weights are gathered."""

    def construct(self, x, starts, key, first_row, following):
        """x (B, t, D), following: number of the next block; the rest as in `MicroBatch` -> (B, t, D)."""
        y = self.compute(x, starts, key, first_row)
        self.gather(following)
        return y


class BlockBackward(BlockCell):
    """A block's gradients: those of the product of its output and the output's gradient."""

    def __init__(self, blocks: Blocks, slot: int, has_dropout: bool, mesh: Mesh, sums: list[Parameter], reduce_dtype):
        super().__init__(blocks, slot, has_dropout, mesh)
        num_trained, self.parameters, self.add_shards = len(blocks.trained), None, None
        if num_trained:
            trained = [parameter for of_stack in blocks.slots[slot][:num_trained] for parameter in of_stack]
            self.parameters = ms.ParameterTuple(trained)
            self.add_shards = GradientShards(blocks, tuple(sums), mesh, reduce_dtype)

    def product(self, x, dy, starts, key, first_row):
        """Return the scalar whose gradients are those of the loss; fp32, so that fp16 cannot overflow."""
        y = self.compute(x, starts, key, first_row)
        return ops.reduce_sum(ops.cast(y, ms.float32) * ops.cast(dy, ms.float32))

    def construct(self, x, dy, starts, key, first_row, block, following):
        """x, dy (B, t, D); block: the number of this block -> the gradient of x (B, t, D).

        The gather comes after the gradients in the text. MindSpore makes what reads parameters wait for writes that
        come before it, and would make the gradients wait for the gather (tests/ascend/overlap.py).
        """
        if self.add_shards is None:
            dx = ms.grad(self.product, 0)(x, dy, starts, key, first_row)
            self.gather(following)
            return dx
        dx, gradients = ms.grad(self.product, 0, self.parameters)(x, dy, starts, key, first_row)
        self.gather(following)
        self.add_shards(gradients, block)
        return dx


class Turns:
    """Which block computes in which slot, and which one is gathered before or meanwhile."""

    def __init__(self, blocks: Blocks, mesh: Mesh):
        self.numbers = [Tensor(block, ms.int32) for block in range(blocks.num_blocks)]
        self.num_slots, self.first = len(blocks.slots), Fill(blocks, 0, mesh)
        self.order: list[int] = []
        self.at = 0

    def begin(self, order: list[int]) -> None:
        """Begin a sequence of blocks that compute in this order."""
        self.order, self.at = order, 0

    def take(self) -> tuple[int, Tensor]:
        """Return the slot of the block whose turn it is, and the block after it; the last one comes again."""
        slot = self.at % self.num_slots
        if self.at == 0 or self.num_slots == 1:
            self.first(self.numbers[self.order[self.at]])
        self.at += 1
        return slot, self.numbers[self.order[min(self.at, len(self.order) - 1)]]


class HiddenStates:
    """Hidden states after this process's blocks, without dropout: a forward graph per slot.

    Args:
        net: this process's part of the model, whose blocks replicas split.
        mesh: the processes.
    """

    def __init__(self, net: GPT2, mesh: Mesh):
        blocks = net.sharded_blocks
        assert blocks is not None
        self.turns, self.order = Turns(blocks, mesh), list(range(blocks.num_blocks))
        self.compute = [BlockForward(blocks, slot, False, mesh) for slot in range(len(blocks.slots))]
        self.nothing = Tensor(0, ms.int32)  # in place of a key and a row

    def __call__(self, x: Tensor, starts: Tensor | None) -> Tensor:
        """x (B, t, D), starts as in `GPT2.construct` -> (B, t, D)."""
        self.turns.begin(self.order)
        for _ in self.order:
            slot, following = self.turns.take()
            x = self.compute[slot](x, starts, self.nothing, self.nothing, following)
        return x
