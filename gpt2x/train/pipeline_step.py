"""An optimizer update by pipeline stages: jitted forward and backward graphs in 1F1B order.

What a forward graph computes cannot be kept for a backward graph, so a stage's backward computes its forward again
from its input: every stage but the last does one forward pass more, and keeps one input a micro batch under way.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gpt2x.optim.adamw import AdamW
from gpt2x.parallel.pipeline import Links, Stage, operations
from gpt2x.train.step import Gradients, Sums, Update, UpdateFromSums, UpdateResult, found


class StageForward(nn.Cell):
    """Hidden states behind a stage."""

    def __init__(self, stage: Stage, randomness: Gradients):
        super().__init__(auto_prefix=False)
        self.stage, self.draw = stage, randomness

    def construct(self, x, ids, key, first_row):
        """x: what enters the stage; ids (b, T + 1) int32, of which the first stage sees the first T."""
        x = ids[:, :-1] if x is None else x
        return self.stage(x, self.draw.randomness(key, first_row, ids.shape[0], ids.shape[1] - 1))


class StageBackward(nn.Cell):
    """Gradients of a stage that is not the last: of the product of its output and the output's gradient."""

    def __init__(self, stage: Stage, randomness: Gradients, parameters: ms.ParameterTuple, sums: Sums):
        super().__init__(auto_prefix=False)
        self.stage, self.draw, self.parameters, self.sums = stage, randomness, parameters, sums
        self.is_first = stage.is_first

    def product(self, x, dy, ids, key, first_row):
        """The scalar whose gradients are those of the loss; fp32, so that fp16 cannot overflow."""
        y = self.stage(x, self.draw.randomness(key, first_row, ids.shape[0], ids.shape[1] - 1))
        return ops.reduce_sum(ops.cast(y, ms.float32) * ops.cast(dy, ms.float32))

    def construct(self, x, dy, ids, key, first_row):
        """-> the gradient of x; None on the first stage."""
        if self.is_first:
            gradients = ms.grad(self.product, None, self.parameters)(ids[:, :-1], dy, ids, key, first_row)
            self.sums(Tensor(0.0, ms.float32), gradients)
            return Tensor(0.0, ms.float32)
        dx, gradients = ms.grad(self.product, 0, self.parameters)(x, dy, ids, key, first_row)
        self.sums(Tensor(0.0, ms.float32), gradients)
        return dx


class LastStage(nn.Cell):
    """Forward and backward of the last stage in one graph, from its input to the scaled loss."""

    def __init__(self, stage: Stage, randomness: Gradients, parameters: ms.ParameterTuple, sums: Sums):
        super().__init__(auto_prefix=False)
        self.stage, self.draw, self.parameters, self.sums = stage, randomness, parameters, sums
        self.is_head_trained = stage.net.is_head_trained()

    def scaled_loss(self, x, ids, weights, key, first_row, loss_scale):
        """x (b, T, D), ids (b, T + 1), weights (b, T) -> scalar."""
        hidden = self.stage(x, self.draw.randomness(key, first_row, ids.shape[0], ids.shape[1] - 1))
        labels, weights = ids[:, 1:].reshape(-1), weights.reshape(-1)
        return self.stage.net.weighted_loss(hidden, labels, weights, self.is_head_trained) * loss_scale

    def construct(self, x, ids, weights, key, first_row, loss_scale):
        """-> the gradient of x."""
        loss, (dx, gradients) = ms.value_and_grad(self.scaled_loss, 0, self.parameters)(
            x, ids, weights, key, first_row, loss_scale
        )
        self.sums(loss, gradients)
        return dx


class PipelineStep:
    """An optimizer update of a global batch by this process' stage; used as `TrainStep`.

    Args:
        stage: the layers of this process.
        links: its messages.
        stage_index: its number.
        num_stages: how many there are.
        parameters: what is differentiated by, in the order in which `optimizer` updates.
        optimizer: updates its parameters in place.
        grad_clip: largest global gradient norm, None for no clipping.
        has_dropout: whether the loss draws random numbers.
        reduction: of gradients over processes.
        publication: run after each update, where the optimizer's parameters are shares of the model's.
    """

    def __init__(
        self,
        stage: Stage,
        links: Links,
        stage_index: int,
        num_stages: int,
        parameters: list[Parameter],
        optimizer: AdamW,
        grad_clip: float | None,
        has_dropout: bool,
        reduction: nn.Cell,
        publication: nn.Cell | None,
    ):
        self.links, self.stage_index, self.num_stages = links, stage_index, num_stages
        self.is_first, self.is_last = stage.is_first, stage.is_last
        draw = Gradients(stage, ms.ParameterTuple(parameters), has_dropout)
        sums = Sums(parameters)
        self.forward = self.backward = self.last = None
        if stage.is_last:
            self.last = LastStage(stage, draw, draw.parameters, sums)
        else:
            self.forward = StageForward(stage, draw)
            self.backward = StageBackward(stage, draw, draw.parameters, sums)
        self.update = UpdateFromSums(Update(optimizer, reduction, grad_clip), sums)
        self.publication = publication
        self.is_compiled = False

    def graphs(self, ids, weights, key, loss_scale, *scalars) -> list[tuple[nn.Cell, tuple]]:
        """The graphs of this stage and example inputs; arguments as in `__call__`."""
        message = self.links.example()
        x = None if self.is_first else message
        rows, targets, first_row = Tensor(ids[0]), Tensor(weights[0]), Tensor(0, ms.int32)
        if self.last is not None:
            graphs = [(self.last, (message, rows, targets, key, first_row, loss_scale))]
        else:
            graphs = [
                (self.forward, (x, rows, key, first_row)),
                (self.backward, (x, message, rows, key, first_row)),
            ]
        graphs.append((self.update, (Tensor(1.0, ms.float32), loss_scale, *scalars)))
        return graphs if self.publication is None else [*graphs, (self.publication, ())]

    def compile(self, *inputs) -> None:
        """Compile the graphs of this stage; arguments as in `__call__`."""
        for cell, example in self.graphs(*inputs):
            cell.compile(*example)
        self.is_compiled = True

    def __call__(
        self,
        ids: np.ndarray,
        weights: np.ndarray,
        key: Tensor,
        loss_scale: Tensor,
        *scalars: Tensor,
        first_row: int = 0,
        share: float = 1.0,
    ) -> UpdateResult:
        """One update; arguments as `TrainStep.__call__`."""
        micro_batches = [
            (Tensor(ids[index]), Tensor(weights[index]), Tensor(first_row + index * ids.shape[1], ms.int32))
            for index in range(len(ids))
        ]
        self.run(micro_batches, key, loss_scale)
        outputs = self.update(Tensor(share, ms.float32), loss_scale, *scalars)
        if self.publication is not None:
            self.publication()
        return found(outputs)

    def run(self, micro_batches: list[tuple[Tensor, Tensor, Tensor]], key: Tensor, loss_scale: Tensor) -> None:
        """Forward and backward of every micro batch; inputs wait for their backward."""
        links, waiting = self.links, {}
        x = y = dx = dy = None
        for operation, index in operations(self.stage_index, self.num_stages, len(micro_batches)):
            rows, targets, first_row = micro_batches[index]
            if operation == "receive_forward":
                x = links.receive_forward()
            elif operation == "forward":
                waiting[index] = x
                if self.forward is not None:
                    y = self.forward(x, rows, key, first_row)
            elif operation == "send_forward":
                links.send_forward(y)
            elif operation == "receive_backward":
                dy = links.receive_backward()
            elif operation == "backward" and self.last is not None:
                dx = self.last(waiting.pop(index), rows, targets, key, first_row, loss_scale)
            elif operation == "backward":
                dx = self.backward(waiting.pop(index), dy, rows, key, first_row)
            else:
                links.send_backward(dx)
