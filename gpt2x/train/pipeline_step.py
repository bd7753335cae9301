"""An optimizer update by pipeline stages: forward and backward graphs of this process's stage in 1F1B order.

What a forward graph computes cannot be kept for a backward graph. So a stage's backward computes its forward again
from its input: every stage but the last does one more forward pass, and keeps one input per micro batch under way.
`gpt2x.parallel.pipeline` has the stage, its messages and the order; `gpt2x.parallel.gradient_reduction` sums the tied
embedding's gradient over the first and the last stage.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops

from gpt2x.optim.base import Optimizer
from gpt2x.parallel.pipeline import Stage, StageLinks, operations
from gpt2x.train.step import Graph, GraphStep, StepInputs
from gpt2x.train.update import GradientSums, UpdateFromSums, dropout_randomness


class StageForward(nn.Cell):
    """Hidden states after a stage that is not the last."""

    def __init__(self, stage: Stage, has_dropout: bool):
        super().__init__(auto_prefix=False)
        self.stage, self.has_dropout = stage, has_dropout

    def construct(self, x, ids, key, first_row):
        """x (b, T, D), None on the first stage; ids (b, T + 1) int32, whose first T enter it -> (b, T, D)."""
        x = ids[:, :-1] if x is None else x
        return self.stage(x, dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1))


class StageBackward(nn.Cell):
    """Gradients of a stage that is not the last: those of the product of its output and the output's gradient."""

    def __init__(self, stage: Stage, parameters: ms.ParameterTuple, has_dropout: bool, sums: GradientSums):
        super().__init__(auto_prefix=False)
        self.stage, self.parameters, self.has_dropout, self.sums = stage, parameters, has_dropout, sums
        self.is_first = stage.is_first

    def product(self, x, dy, ids, key, first_row):
        """Return the scalar whose gradients are those of the loss; fp32, so that fp16 cannot overflow."""
        y = self.stage(x, dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1))
        return ops.reduce_sum(ops.cast(y, ms.float32) * ops.cast(dy, ms.float32))

    def construct(self, x, dy, ids, key, first_row):
        """x (b, T, D), None on the first stage; dy (b, T, D) -> the gradient of x, zero on the first stage."""
        if self.is_first:
            gradients = ms.grad(self.product, None, self.parameters)(ids[:, :-1], dy, ids, key, first_row)
            self.sums(Tensor(0.0, ms.float32), gradients)
            return Tensor(0.0, ms.float32)
        dx, gradients = ms.grad(self.product, 0, self.parameters)(x, dy, ids, key, first_row)
        self.sums(Tensor(0.0, ms.float32), gradients)
        return dx


class LastStage(nn.Cell):
    """Forward and backward of the last stage in one graph, from its input to the scaled loss."""

    def __init__(self, stage: Stage, parameters: ms.ParameterTuple, has_dropout: bool, sums: GradientSums):
        super().__init__(auto_prefix=False)
        self.stage, self.parameters, self.has_dropout, self.sums = stage, parameters, has_dropout, sums
        self.is_head_trained = stage.net.is_head_trained()

    def scaled_loss(self, x, ids, weights, key, first_row, loss_scale):
        """x (b, T, D), ids (b, T + 1), weights (b, T) -> scalar."""
        randomness = dropout_randomness(self.has_dropout, key, first_row, ids.shape[0], ids.shape[1] - 1)
        hidden = self.stage(x, randomness)
        labels, weights = ids[:, 1:].reshape(-1), weights.reshape(-1)
        return self.stage.net.weighted_loss(hidden, labels, weights, self.is_head_trained) * loss_scale

    def construct(self, x, ids, weights, key, first_row, loss_scale):
        """-> the gradient of x (b, T, D)."""
        loss, (dx, gradients) = ms.value_and_grad(self.scaled_loss, 0, self.parameters)(
            x, ids, weights, key, first_row, loss_scale
        )
        self.sums(loss, gradients)
        return dx


class PipelineStep(GraphStep):
    """The update of a process that has the layers of one pipeline stage.

    Args:
        stage: the layers of this process.
        links: its messages with the neighbouring stages.
        stage_index: its number.
        num_stages: number of stages.
        parameters: the parameters to differentiate by, in the order in which `optimizer` updates.
        optimizer: as in `GraphStep`, and so are grad_clip, reduction and all_gather.
        has_dropout: whether the loss draws random numbers.
    """

    def __init__(
        self,
        stage: Stage,
        links: StageLinks,
        stage_index: int,
        num_stages: int,
        parameters: list[Parameter],
        optimizer: Optimizer,
        grad_clip: float | None,
        has_dropout: bool,
        reduction: nn.Cell,
        all_gather: nn.Cell | None,
    ):
        super().__init__(optimizer, grad_clip, reduction, all_gather)
        self.links, self.stage_index, self.num_stages = links, stage_index, num_stages
        self.is_first = stage.is_first
        sums, differentiated = GradientSums(parameters), ms.ParameterTuple(parameters)
        self.forward = self.backward = self.last = None
        if stage.is_last:
            self.last = LastStage(stage, differentiated, has_dropout, sums)
        else:
            self.forward = StageForward(stage, has_dropout)
            self.backward = StageBackward(stage, differentiated, has_dropout, sums)
        self.from_sums = UpdateFromSums(self.update, sums)

    def update_graphs(self, inputs: StepInputs) -> list[Graph]:
        """Return the graphs of this stage, forward and backward apart on all stages but the last."""
        message, micro_batch = self.links.example(), inputs.micro_batch(0)
        x = None if self.is_first else message
        ids, _, key, first_row, _ = micro_batch
        if self.last is not None:
            graphs: list[Graph] = [(self.last, (message, *micro_batch))]
        else:
            graphs = [(self.forward, (x, ids, key, first_row)), (self.backward, (x, message, ids, key, first_row))]
        return [*graphs, (self.from_sums, inputs.update_scalars())]

    def run(self, inputs: StepInputs) -> tuple[Tensor, ...]:
        """Run forward and backward of every micro batch in 1F1B order, then the update."""
        links, stage_inputs = self.links, {}  # of micro batches whose backward is to come
        micro_batches = list(inputs.micro_batches())
        x = y = dx = dy = None
        for operation, index in operations(self.stage_index, self.num_stages, len(micro_batches)):
            ids, _, key, first_row, _ = micro_batches[index]
            if operation == "receive_forward":
                x = links.receive_forward()
            elif operation == "forward":
                stage_inputs[index] = x
                if self.forward is not None:
                    y = self.forward(x, ids, key, first_row)
            elif operation == "send_forward":
                links.send_forward(y)
            elif operation == "receive_backward":
                dy = links.receive_backward()
            elif operation == "backward" and self.last is not None:
                dx = self.last(stage_inputs.pop(index), *micro_batches[index])
            elif operation == "backward":
                dx = self.backward(stage_inputs.pop(index), dy, ids, key, first_row)
            else:
                links.send_backward(dx)
        return self.from_sums(*inputs.update_scalars())
