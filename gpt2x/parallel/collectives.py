"""Collective operations inside graphs: the one place where the CPU and Ascend differ (docs/design/parallel.md).

On MindSpore's CPU backend only a summing AllReduce works in a graph on a group. There an all-gather is the all-reduce
of a buffer that is zero except for the local part, and a reduce-scatter is an all-reduce of which the local part is
kept. Sums with zeros are exact, so the values are those of Ascend's collectives.

A group of one process needs no communication: `group` is None, and every Cell returns its input.
The pairs with a gradient of their own are Megatron-LM's f and g (Shoeybi et al., arXiv:1909.08053, section 3) and
their forms for sequence parallelism (Korthikanti et al., arXiv:2205.05198, section 4.2.2).

Legend: B batch, T tokens, t tokens of one process, D hidden, n processes of the group.
"""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import Tensor, nn, ops


@dataclass(frozen=True)
class Group:
    """Processes that communicate.

    Attributes:
        name: MindSpore's name of the group.
        index: the number of this process in the group.
        size: number of processes.
        device_target: CPU or Ascend.
    """

    name: str
    index: int
    size: int
    device_target: str


class AllReduce(nn.Cell):
    """The sum over the group, without a gradient; `SumOverGroup` has one."""

    def __init__(self, group: Group | None):
        super().__init__()
        self.reduce = ops.AllReduce(group=group.name) if group else None

    def construct(self, x):
        """x of any shape -> the same shape."""
        return x if self.reduce is None else self.reduce(x)


class AllGather(nn.Cell):
    """The tensors of all processes along dim 0; the gradient is reduce-scattered."""

    def __init__(self, group: Group | None):
        super().__init__()
        self.group = group
        self.gather = self.reduce = None
        self.zeros_like = ops.ZerosLike()  # the function of that name breaks graphs of Cells with a bprop
        if group and group.device_target != "CPU":
            self.gather = ops.AllGather(group=group.name)
        elif group:
            self.reduce = ops.AllReduce(group=group.name)
            self.before, self.after = group.index, group.size - group.index - 1

    def construct(self, x):
        """x (k, ...) -> (n * k, ...)."""
        if self.gather is not None:
            return self.gather(x)
        if self.reduce is None:
            return x
        zeros = self.zeros_like(x)
        parts = (zeros,) * self.before + (x,) + (zeros,) * self.after
        return self.reduce(ops.concat(parts, 0))


class ReduceScatter(nn.Cell):
    """This process's slice along dim 0 of the sum over the group; the gradient is all-gathered."""

    def __init__(self, group: Group | None):
        super().__init__()
        self.scatter = self.reduce = None
        if group and group.device_target != "CPU":
            self.scatter = ops.ReduceScatter(group=group.name)
        elif group:
            self.reduce, self.size = ops.AllReduce(group=group.name), group.size
            self.index = Tensor([group.index], ms.int32)

    def construct(self, x):
        """x (n * k, ...) -> (k, ...)."""
        if self.scatter is not None:
            return self.scatter(x)
        if self.reduce is None:
            return x
        parts = self.reduce(x).reshape(self.size, -1)
        local_part = ops.gather(parts, self.index, 0)  # a slice takes 20 times longer on the CPU
        return local_part.reshape(x.shape[0] // self.size, *x.shape[1:])


class CopyToGroup(nn.Cell):
    """Megatron's f: the identity; its gradient is summed over the group."""

    def __init__(self, group: Group):
        super().__init__()
        self.sum = ops.AllReduce(group=group.name)  # not a Cell, which would have a scope of its own

    def _set_recompute_scope(self):
        """Mark what `bprop` computes as backward.

        By its scope MindSpore takes it for a part of a recomputed block's forward, and would make the block's forward
        wait for its gradient: "Graph cycle exists" on Ascend (tests/ascend/layouts.py).
        """
        self._scope = "Gradients"

    def construct(self, x):
        """x of any shape, the same on every process -> x."""
        return x

    def bprop(self, x, out, dout):
        """Return the sum of the processes' gradients."""
        return (self.sum(dout),)


class SumOverGroup(nn.Cell):
    """Megatron's g: the sum over the group; its gradient passes unchanged."""

    def __init__(self, group: Group | None):
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x):
        """x of any shape -> its sum, the same on every process."""
        return self.sum(x)

    def bprop(self, x, out, dout):
        """Return the gradient of the sum, which is that of each summand."""
        return (dout,)


class GatherTokens(nn.Cell):
    """All tokens from each process's slice; the gradient, by autograd, is reduce-scattered."""

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.gather = group.size, AllGather(group)

    def construct(self, x):
        """x (B, t, D) -> (B, T, D)."""
        return join_tokens(self.gather(x), self.size)


class ScatterTokens(nn.Cell):
    """This process's slice of the tokens of the sum over the group; the gradient, by autograd, is all-gathered."""

    def __init__(self, group: Group):
        super().__init__()
        self.size, self.scatter = group.size, ReduceScatter(group)

    def construct(self, x):
        """x (B, T, D) partial sums -> (B, t, D)."""
        return self.scatter(part_tokens(x, self.size))


class SplitTokens(nn.Cell):
    """This process's slice of tokens that every process has; the gradient is all-gathered."""

    def __init__(self, group: Group):
        super().__init__()
        self.index, self.size, self.gather = group.index, group.size, AllGather(group)

    def construct(self, x):
        """x (B, T, D) -> (B, t, D)."""
        size = x.shape[1] // self.size
        return x[:, self.index * size : (self.index + 1) * size]

    def bprop(self, x, out, dout):
        """(B, t, D) -> (B, T, D)."""
        return (join_tokens(self.gather(dout), self.size),)


class JoinTokens(nn.Cell):
    """All tokens, with which every process then computes the same; the gradient is this process's slice."""

    def __init__(self, group: Group):
        super().__init__()
        self.index, self.size, self.gather = group.index, group.size, AllGather(group)

    def construct(self, x):
        """x (B, t, D) -> (B, T, D)."""
        return join_tokens(self.gather(x), self.size)

    def bprop(self, x, out, dout):
        """(B, T, D), the same on every process -> (B, t, D)."""
        size = dout.shape[1] // self.size
        return (dout[:, self.index * size : (self.index + 1) * size],)


def join_tokens(x, size: int):
    """Join: (n * B, t, D) in the order of processes -> (B, n * t, D)."""
    batch_size, tokens, hidden_size = x.shape[0] // size, x.shape[1], x.shape[2]
    x = x.reshape(size, batch_size, tokens, hidden_size).transpose(1, 0, 2, 3)
    return x.reshape(batch_size, size * tokens, hidden_size)


def part_tokens(x, size: int):
    """Split: (B, n * t, D) -> (n * B, t, D) in the order of processes."""
    batch_size, tokens, hidden_size = x.shape[0], x.shape[1] // size, x.shape[2]
    x = x.reshape(batch_size, size, tokens, hidden_size).transpose(1, 0, 2, 3)
    return x.reshape(size * batch_size, tokens, hidden_size)
