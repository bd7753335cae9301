"""An optimizer update by pipeline stages: forward and backward graphs of this process's stage in 1F1B order.

What a forward graph computes cannot be kept for a backward graph. So a stage's backward computes its forward again
from its input: every stage but the last does one more forward pass, and keeps one input per micro batch under way.
`gpt2x.parallel.pipeline` has the stage, its messages and the order; `gpt2x.parallel.gradient_reduction` sums the tied
embedding's gradient over the first and the last stage.
"""

from __future__ import annotations

from typing import Protocol

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from gpt2x.model.gpt2 import dropout_randomness
from gpt2x.optim.base import Optimizer
from gpt2x.parallel.pipeline import Stage, StageLinks, operations
from gpt2x.train.step import BeforeUpdate, Graph, GraphStep, MicroBatch, StepInputs
from gpt2x.train.update import GradientSums, UpdateFromSums


class StageForward(nn.Cell):
    """Hidden states after a stage that is not the last."""

    def __init__(self, stage: Stage, has_dropout: bool):
        super().__init__(auto_prefix=False)
        self.stage, self.has_dropout = stage, has_dropout

    def construct(self, x, ids, starts, key, first_row):
        """x (b, T, D), None on the first stage; ids (b, T + 1) int32, whose first T enter it -> (b, T, D)."""
        x = ids[:, :-1] if x is None else x
        randomness = dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1)
        return self.stage(x, randomness, starts)


class StageBackward(nn.Cell):
    """Gradients of a stage that is not the last: those of the product of its output and the output's gradient."""

    def __init__(self, stage: Stage, parameters: ms.ParameterTuple, has_dropout: bool, sums: GradientSums):
        super().__init__(auto_prefix=False)
        self.stage, self.parameters, self.has_dropout, self.sums = stage, parameters, has_dropout, sums
        self.is_first = stage.is_first

    def product(self, x, dy, ids, starts, key, first_row):
        """Return the scalar whose gradients are those of the loss; fp32, so that fp16 cannot overflow."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1)
        y = self.stage(x, randomness, starts)
        return ops.reduce_sum(ops.cast(y, ms.float32) * ops.cast(dy, ms.float32))

    def construct(self, x, dy, ids, starts, key, first_row):
        """x (b, T, D), None on the first stage; dy (b, T, D) -> the gradient of x, zero on the first stage."""
        if self.is_first:
            gradients = ms.grad(self.product, None, self.parameters)(ids[:, :-1], dy, ids, starts, key, first_row)
            self.sums(Tensor(0.0, ms.float32), gradients)
            return Tensor(0.0, ms.float32)
        dx, gradients = ms.grad(self.product, 0, self.parameters)(x, dy, ids, starts, key, first_row)
        self.sums(Tensor(0.0, ms.float32), gradients)
        return dx


class LastStage(nn.Cell):
    """Forward and backward of the last stage in one graph, from its input to the scaled loss.

    Args:
        stage: the layers.
        loss: of the task; its `of_hidden` is computed here.
        parameters: the parameters to differentiate by.
        has_dropout: whether the stage draws random numbers.
        sums: of the loss and of the gradients by these parameters.
    """

    def __init__(
        self, stage: Stage, loss: nn.Cell, parameters: ms.ParameterTuple, has_dropout: bool, sums: GradientSums
    ):
        super().__init__(auto_prefix=False)
        self.stage, self.loss, self.parameters = stage, loss, parameters
        self.has_dropout, self.sums, self.is_trained = has_dropout, sums, bool(parameters)

    def scaled_loss(self, x, ids, weights, starts, key, first_row, loss_scale):
        """x (b, T, D), ids (b, T + 1), weights (b, T) -> scalar."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1)
        return self.loss.of_hidden(self.stage(x, randomness, starts), ids, weights) * loss_scale

    def construct(self, x, ids, weights, starts, key, first_row, loss_scale):
        """-> the gradient of x (b, T, D)."""
        inputs = x, ids, weights, starts, key, first_row, loss_scale
        if not self.is_trained:
            loss, dx = ms.value_and_grad(self.scaled_loss, 0)(*inputs)
            self.sums(loss, ())
            return dx
        loss, (dx, gradients) = ms.value_and_grad(self.scaled_loss, 0, self.parameters)(*inputs)
        self.sums(loss, gradients)
        return dx


class StageProgram(Protocol):
    """How a process computes its pipeline stage: by one graph per direction, or by one per block."""

    def graphs(self, message: Tensor, micro_batch: MicroBatch) -> list[Graph]:
        """Return all graphs, with example inputs; `message` is one of zeros."""

    def begin(self, order: list[tuple[str, int]]) -> None:
        """Begin an update, in which `forward` and `backward` are called for micro batches in this order."""

    def forward(self, index: int, x: Tensor | None, micro_batch: MicroBatch) -> Tensor | None:
        """Return the output of a micro batch, None on the last stage; x is the stage's input, None on the first."""

    def backward(self, index: int, dy: Tensor | None, micro_batch: MicroBatch) -> Tensor:
        """Add the gradients of a micro batch to their sums, and return that of its input.

        dy: the gradient of the output; None on the last stage, which begins with the loss.
        """


class WholeStage:
    """A stage as one forward and one backward graph.

    Args:
        stage: the layers of this process.
        loss: of the task, None before the last stage.
        parameters: the parameters to differentiate by.
        has_dropout: whether the loss draws random numbers.
        sums: of the gradients by these parameters.
    """

    def __init__(
        self, stage: Stage, loss: nn.Cell | None, parameters: list[Parameter], has_dropout: bool, sums: GradientSums
    ):
        self.is_first, differentiated = stage.is_first, ms.ParameterTuple(parameters)
        self.inputs: dict[int, Tensor | None] = {}  # of micro batches whose backward is to come
        self.last = self.stage_forward = self.stage_backward = None
        if stage.is_last:
            assert loss is not None
            self.last = LastStage(stage, loss, differentiated, has_dropout, sums)
        else:
            self.stage_forward = StageForward(stage, has_dropout)
            self.stage_backward = StageBackward(stage, differentiated, has_dropout, sums)

    def graphs(self, message: Tensor, micro_batch: MicroBatch) -> list[Graph]:
        """As `StageProgram.graphs`."""
        if self.last is not None:
            return [(self.last, (message, *micro_batch))]
        assert self.stage_forward is not None
        assert self.stage_backward is not None
        x, inputs = None if self.is_first else message, micro_batch.of_hidden
        return [(self.stage_forward, (x, *inputs)), (self.stage_backward, (x, message, *inputs))]

    def begin(self, order: list[tuple[str, int]]) -> None:
        """As `StageProgram.begin`."""

    def forward(self, index: int, x: Tensor | None, micro_batch: MicroBatch) -> Tensor | None:
        """As `StageProgram.forward`; the last stage computes nothing yet."""
        self.inputs[index] = x
        return None if self.stage_forward is None else self.stage_forward(x, *micro_batch.of_hidden)

    def backward(self, index: int, dy: Tensor | None, micro_batch: MicroBatch) -> Tensor:
        """As `StageProgram.backward`."""
        x = self.inputs.pop(index)
        if self.last is not None:
            return self.last(x, *micro_batch)
        assert self.stage_backward is not None
        return self.stage_backward(x, dy, *micro_batch.of_hidden)


class PipelineStep(GraphStep):
    """The update of a process that has the layers of one pipeline stage, or of the only one.

    Args:
        program: computes the stage.
        links: its messages with the neighbouring stages.
        stage_index: its number.
        num_stages: number of stages.
        sums: of the gradients, to which `program` adds.
        optimizer: as in `GraphStep`, and so are grad_clip, reduction and all_gather.
    """

    def __init__(
        self,
        program: StageProgram,
        links: StageLinks,
        stage_index: int,
        num_stages: int,
        sums: GradientSums,
        optimizer: Optimizer,
        grad_clip: float | None,
        reduction: nn.Cell | None,
        all_gather: nn.Cell | None,
    ):
        super().__init__(optimizer, grad_clip, reduction, all_gather)
        self.program, self.links, self.stage_index, self.num_stages = program, links, stage_index, num_stages
        self.sums, self.from_sums = sums, UpdateFromSums(self.update, sums)

    def update_graphs(self, inputs: StepInputs) -> list[Graph]:
        """Return the graphs of this stage and that of the update."""
        graphs = self.program.graphs(self.links.example(), inputs.micro_batch(0))
        return [*graphs, (self.from_sums, inputs.update_scalars())]

    def run(self, inputs: StepInputs, before_update: BeforeUpdate | None = None) -> tuple[Tensor, ...]:
        """Run forward and backward of every micro batch in 1F1B order, then the update."""
        program, links, micro_batches = self.program, self.links, list(inputs.micro_batches())
        order = list(operations(self.stage_index, self.num_stages, len(micro_batches)))
        program.begin([(operation, index) for operation, index in order if operation in ("forward", "backward")])
        x = y = dx = dy = None
        for operation, index in order:
            if operation == "receive_forward":
                x = links.receive_forward()
            elif operation == "forward":
                y = program.forward(index, x, micro_batches[index])
            elif operation == "send_forward":
                links.send_forward(y)
            elif operation == "receive_backward":
                dy = links.receive_backward()
            elif operation == "backward":
                dx = program.backward(index, dy, micro_batches[index])
            else:
                links.send_backward(dx)
        if before_update is not None:
            before_update(inputs)
        return self.from_sums(*inputs.update_scalars())
