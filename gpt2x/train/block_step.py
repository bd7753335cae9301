"""A pipeline stage, or the whole model, computed block by block under full sharding (`gpt2x.parallel.full_sharding`).

One graph computes a block forward; another computes it again and its gradient. Python calls them in the order of the
blocks and keeps each block's input. While a block computes, the weights of the next one are gathered.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from gpt2x.model.classifier import Classifier
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.block_graphs import BlockBackward, BlockForward, Turns
from gpt2x.parallel.full_sharding import Blocks
from gpt2x.parallel.gradient_reduction import LocalParameter
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Stage
from gpt2x.train.pipeline_step import LastStage, StageBackward, StageForward
from gpt2x.train.step import Graph, MicroBatch
from gpt2x.train.update import GradientSums

ENTRANCE = ("wte.weight", "wpe.weight")  # tensors before the blocks


class StageOfBlocks:
    """A `StageProgram` by graphs per block.

    Args:
        blocks: of this process.
        loss: of the task, None before the last stage.
        outer: the trained parameters outside of the blocks, in the order of `sums`.
        sums: of the gradients: by `outer`, then by the trained stacks.
        has_dropout: whether the loss draws random numbers.
        mesh: the processes.
        reduce_dtype: in which gradients of blocks travel; None: the compute dtype.
    """

    def __init__(
        self,
        blocks: Blocks,
        loss: nn.Cell | None,
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
            first = Stage(blocks.net, is_first=True, is_last=False, has_blocks=False)
            self.enter = StageForward(first, has_dropout)
            trained = [index for index, local in enumerate(outer) if local.name in ENTRANCE]
            if trained:
                self.enter_backward = StageBackward(
                    first, parameters_of(outer, trained), has_dropout, sums.part(trained)
                )
        if coordinates.is_last_stage:
            assert loss is not None
            after = [index for index, local in enumerate(outer) if is_after(local.name, blocks.net)]
            last = Stage(blocks.net, is_first=False, is_last=True, has_blocks=False)
            self.leave = LastStage(last, loss, parameters_of(outer, after), has_dropout, sums.part(after))

    def graphs(self, message: Tensor, micro_batch: MicroBatch) -> list[Graph]:
        """As `StageProgram.graphs`."""
        inputs, number = micro_batch.of_block, self.turns.numbers[0]
        graphs: list[Graph] = [(self.turns.first, (number,))]
        graphs += [(cell, (message, *inputs, number)) for cell in self.block_forward]
        graphs += [(cell, (message, message, *inputs, number, number)) for cell in self.block_backward]
        if self.enter is not None:
            graphs.append((self.enter, (None, *micro_batch.of_hidden)))
        if self.enter_backward is not None:
            graphs.append((self.enter_backward, (None, message, *micro_batch.of_hidden)))
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
        y = x if self.enter is None else self.enter(None, *micro_batch.of_hidden)
        assert y is not None
        inputs = []
        for _ in range(self.blocks.num_blocks):
            inputs.append(y)
            slot, following = self.turns.take()
            y = self.block_forward[slot](y, *micro_batch.of_block, following)
        self.inputs[index] = inputs
        if self.leave is None:
            return y
        self.outputs[index] = y
        return None

    def backward(self, index: int, dy: Tensor | None, micro_batch: MicroBatch) -> Tensor:
        """As `StageProgram.backward`."""
        if self.leave is not None:
            dy = self.leave(self.outputs.pop(index), *micro_batch)
        assert dy is not None
        inputs = self.inputs.pop(index)
        for block in reversed(range(self.blocks.num_blocks)):
            slot, following = self.turns.take()
            number = self.turns.numbers[block]
            dy = self.block_backward[slot](inputs.pop(), dy, *micro_batch.of_block, number, following)
        if self.enter_backward is not None:
            self.enter_backward(None, dy, *micro_batch.of_hidden)
        return dy


def is_after(name: str, net: GPT2) -> bool:
    """Return whether a tensor outside of the blocks is used after them: all that are not only an embedding."""
    is_tied = net.lm_head is None and not isinstance(net, Classifier)
    return name not in ENTRANCE or (name == "wte.weight" and is_tied)


def parameters_of(outer: list[LocalParameter], indices: list[int]) -> ms.ParameterTuple:
    """Return the parameters that the model computes with, of some of the trained ones."""
    return ms.ParameterTuple([outer[index].parameter for index in indices])
