"""A pipeline stage, or the whole model, computed block by block under full sharding (`gpt2x.parallel.full_sharding`).

One graph computes a block forward; another computes it again and its gradient. Python calls them in the order of the
blocks and keeps each block's input. While a block computes, the weights of the next one are gathered.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from gpt2x.parallel.block_graphs import BlockBackward, BlockForward, Turns
from gpt2x.parallel.full_sharding import Blocks
from gpt2x.parallel.gradient_reduction import LocalParameter
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.pipeline_step import LastStage, StageBackward, StageForward
from gpt2x.train.step import Graph, MicroBatch
from gpt2x.train.update import GradientSums

ENTRANCE = ("wte.weight", "wpe.weight")  # tensors before the blocks


class First(nn.Cell):
    """What comes before the first block, as a stage."""

    is_first = True

    def __init__(self, net: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, randomness):
        """x: ids (b, T) int32 -> (b, T or t, D)."""
        return self.net.begin(x, randomness)


class Last(nn.Cell):
    """What comes between the last block and the head, as a stage."""

    def __init__(self, net: nn.Cell):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, x, randomness):
        """x (b, T or t, D) -> (b, T, D)."""
        return self.net.end(x)


class StageOfBlocks:
    """A `StageProgram` by graphs per block.

    Args:
        blocks: of this process.
        outer: the trained parameters outside of the blocks, in the order of `sums`.
        sums: of the gradients: by `outer`, then by the trained stacks.
        has_dropout: whether the loss draws random numbers.
        mesh: the processes.
        reduce_dtype: in which gradients of blocks travel; None: the compute dtype.
    """

    def __init__(
        self,
        blocks: Blocks,
        outer: list[LocalParameter],
        sums: GradientSums,
        has_dropout: bool,
        mesh: Mesh,
        reduce_dtype=None,
    ):
        self.blocks, self.turns, coordinates = blocks, Turns(blocks, mesh), mesh.coordinates
        of_stacks = list(sums.gradients[len(outer) :])
        slots = range(len(blocks.slots))
        self.block_forward = [BlockForward(blocks, slot, has_dropout, mesh) for slot in slots]
        self.block_backward = [
            BlockBackward(blocks, slot, has_dropout, mesh, of_stacks, reduce_dtype) for slot in slots
        ]
        self.inputs: dict[int, list[Tensor]] = {}  # of each block, for micro batches whose backward is to come
        self.outputs: dict[int, Tensor] = {}
        self.enter = self.enter_backward = self.leave = None
        if coordinates.is_first_stage:
            self.enter = StageForward(First(blocks.net), has_dropout)
            trained = [index for index, local in enumerate(outer) if local.name in ENTRANCE]
            if trained:
                self.enter_backward = StageBackward(
                    First(blocks.net), parameters_of(outer, trained), has_dropout, sums.part(trained)
                )
        if coordinates.is_last_stage:
            head = "lm_head.weight" if blocks.net.lm_head is not None else "wte.weight"
            after = [index for index, local in enumerate(outer) if local.name == head or "ln_f" in local.name]
            self.leave = LastStage(Last(blocks.net), parameters_of(outer, after), has_dropout, sums.part(after))

    def graphs(self, message: Tensor, micro_batch: MicroBatch) -> list[Graph]:
        """As `StageProgram.graphs`."""
        ids, _, key, first_row, _ = micro_batch
        number = self.turns.numbers[0]
        graphs: list[Graph] = [(self.turns.first, (number,))]
        graphs += [(cell, (message, key, first_row, number)) for cell in self.block_forward]
        graphs += [(cell, (message, message, key, first_row, number, number)) for cell in self.block_backward]
        if self.enter is not None:
            graphs.append((self.enter, (None, ids, key, first_row)))
        if self.enter_backward is not None:
            graphs.append((self.enter_backward, (None, message, ids, key, first_row)))
        if self.leave is not None:
            graphs.append((self.leave, (message, *micro_batch)))
        return graphs

    def begin(self, order: list[tuple[str, int]]) -> None:
        """As `StageProgram.begin`."""
        forward = list(range(self.blocks.num_blocks))
        turns = [forward if operation == "forward" else forward[::-1] for operation, _ in order]
        self.turns.begin([block for blocks in turns for block in blocks])

    def forward(self, index: int, x: Tensor | None, micro_batch: MicroBatch) -> Tensor | None:
        """As `StageProgram.forward`."""
        ids, _, key, first_row, _ = micro_batch
        y = x if self.enter is None else self.enter(None, ids, key, first_row)
        assert y is not None
        inputs = []
        for _ in range(self.blocks.num_blocks):
            inputs.append(y)
            slot, following = self.turns.take()
            y = self.block_forward[slot](y, key, first_row, following)
        self.inputs[index] = inputs
        if self.leave is None:
            return y
        self.outputs[index] = y
        return None

    def backward(self, index: int, dy: Tensor | None, micro_batch: MicroBatch) -> Tensor:
        """As `StageProgram.backward`."""
        ids, _, key, first_row, _ = micro_batch
        if self.leave is not None:
            dy = self.leave(self.outputs.pop(index), *micro_batch)
        assert dy is not None
        inputs = self.inputs.pop(index)
        for block in reversed(range(self.blocks.num_blocks)):
            slot, following = self.turns.take()
            dy = self.block_backward[slot](inputs.pop(), dy, key, first_row, self.turns.numbers[block], following)
        if self.enter_backward is not None:
            self.enter_backward(None, dy, ids, key, first_row)
        return dy


def parameters_of(outer: list[LocalParameter], indices: list[int]) -> ms.ParameterTuple:
    """Return the parameters that the model computes with, of some of the trained ones."""
    return ms.ParameterTuple([outer[index].parameter for index in indices])
