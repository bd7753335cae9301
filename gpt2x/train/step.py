"""An optimizer update of a global batch, called from the host: its inputs, its result, the graphs that it runs.

`GraphStep` is the frame that both kinds share; `TrainStep` runs the whole model, `gpt2x.train.pipeline_step` a stage.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from gpt2x.optim.base import Optimizer
from gpt2x.parallel.gradient_reduction import GradientReduction, ReductionTotals
from gpt2x.runtime.device import compile_graph
from gpt2x.train.update import Accumulation, Gradients, GradientSums, Update, UpdateFromBatch, UpdateFromSums

Graph = tuple[nn.Cell, tuple[Tensor | None, ...]]  # with its example inputs


class MicroBatch(NamedTuple):
    """Inputs of one forward and backward pass, in the order in which the graphs take them.

    Attributes:
        ids: (B, T + 1) int32.
        weights: (B, T) fp32.
        starts: (B, T) int32, or None, as in `gpt2x.data.sampling.Inputs`.
        key: int32 scalar, for dropout.
        first_row: int32 scalar, the number of the first row within the global batch.
        loss_scale: fp32 scalar.
    """

    ids: Tensor
    weights: Tensor
    starts: Tensor | None
    key: Tensor
    first_row: Tensor
    loss_scale: Tensor

    @property
    def of_hidden(self) -> tuple[Tensor | None, ...]:
        """Return what hidden states are computed of: ids, starts, key and first_row."""
        return self.ids, self.starts, self.key, self.first_row

    @property
    def of_block(self) -> tuple[Tensor | None, ...]:
        """Return what a block takes besides hidden states: starts, key and first_row."""
        return self.starts, self.key, self.first_row


class StepInputs(NamedTuple):
    """One process's inputs of an update.

    Attributes:
        ids: (A, B, T + 1) int32, the rows of A micro batches.
        weights: (A, B, T) fp32, of each target 1 / (targets of the global batch), or 0 if it does not count.
        key: int32 scalar, a hash of (seed, step), for dropout.
        loss_scale: fp32 scalar, 1 unless the precision is fp16.
        scalars: what `Optimizer.scalars` returns.
        first_row: the number of this process's first row within the global batch.
        counted_fraction: the sum of `weights`.
        starts: (A, B, T) int32, or None, as in `gpt2x.data.sampling.Inputs`.
        limits: the largest loss and the largest gradient norm with which the update is made.
    """

    ids: np.ndarray
    weights: np.ndarray
    key: Tensor
    loss_scale: Tensor
    scalars: tuple[Tensor, ...]
    first_row: int = 0
    counted_fraction: float = 1.0
    starts: np.ndarray | None = None
    limits: tuple[float, float] = (math.inf, math.inf)

    def micro_batch(self, index: int) -> MicroBatch:
        """Return the inputs of the `index`-th forward and backward pass."""
        row = Tensor(self.first_row + index * self.ids.shape[1], ms.int32)
        starts = None if self.starts is None else Tensor(self.starts[index])
        ids, weights = Tensor(self.ids[index]), Tensor(self.weights[index])
        return MicroBatch(ids, weights, starts, self.key, row, self.loss_scale)

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Return the inputs of all forward and backward passes, in order."""
        return map(self.micro_batch, range(len(self.ids)))

    def update_scalars(self) -> tuple[Tensor, ...]:
        """Return the scalars of `UpdateFromSums`."""
        limits = (Tensor(limit, ms.float32) for limit in self.limits)
        return Tensor(self.counted_fraction, ms.float32), self.loss_scale, *limits, *self.scalars


BeforeUpdate = Callable[[StepInputs], None]


class UpdateResult(NamedTuple):
    """Result of an update on the host.

    Attributes:
        loss: unscaled loss of the global batch.
        norm: global norm of the unscaled gradients before clipping.
        is_made: whether the norm was finite and both were within their limits; if not, nothing was updated.
        counted_fraction: the fraction of the global batch's targets that counted in the loss.
    """

    loss: float
    norm: float
    is_made: bool
    counted_fraction: float

    @classmethod
    def from_outputs(cls, outputs: tuple[Tensor, ...]) -> UpdateResult:
        """Copy the outputs of `gpt2x.train.update.Update` to the host."""
        loss, norm, is_made, counted_fraction = (value.asnumpy() for value in outputs)
        return cls(float(loss), float(norm), bool(is_made), float(counted_fraction))


class GraphStep(ABC):
    """An optimizer update of a global batch as compiled graphs: the frame that all layouts share.

    Args:
        optimizer: updates its parameters in place.
        grad_clip: largest global gradient norm, None for no clipping.
        reduction: sums gradients over processes; None if there is only one process.
        all_gather: run after each update, if the optimizer updates shards of the model's parameters.

    Attributes:
        gradients: forward and backward of a batch that is one micro batch; None if there are `sums`.
        sums: of the gradients of micro batches; None if the batch is one micro batch.
        open_reduction: what gradients, or their sums, have yet to go through; None: nothing.
    """

    gradients: Gradients | None = None
    sums: GradientSums | None = None

    def __init__(
        self, optimizer: Optimizer, grad_clip: float | None, reduction: nn.Cell | None, all_gather: nn.Cell | None
    ):
        self.all_gather = all_gather
        self.open_reduction = reduction if isinstance(reduction, GradientReduction) else None
        self.update = Update(optimizer, reduction, grad_clip)
        self.is_compiled = False

    @abstractmethod
    def update_graphs(self, inputs: StepInputs) -> list[Graph]:
        """Return the graphs from a batch to updated parameters, with example inputs."""

    @abstractmethod
    def run(self, inputs: StepInputs, before_update: BeforeUpdate | None = None) -> tuple[Tensor, ...]:
        """Run these graphs and return the outputs of `Update`; `before_update` as in `__call__`."""

    def graphs(self, inputs: StepInputs) -> list[Graph]:
        """Return all graphs of an update, with example inputs."""
        graphs = self.update_graphs(inputs)
        return graphs if self.all_gather is None else [*graphs, (self.all_gather, ())]

    def compile(self, inputs: StepInputs) -> None:
        """Compile all graphs, so that the first update takes no longer than the others."""
        for cell, example in self.graphs(inputs):
            compile_graph(cell, *example)
        self.is_compiled = True

    def __call__(self, inputs: StepInputs, before_update: BeforeUpdate | None = None) -> UpdateResult:
        """Update the parameters by one global batch.

        Args:
            inputs: the batch.
            before_update: is called when the sums of the gradients, if there are any, are complete, and no parameter
                has changed.
        """
        outputs = self.run(inputs, before_update)
        if self.all_gather is not None:
            self.all_gather()
        return UpdateResult.from_outputs(outputs)


class TrainStep(GraphStep):
    """The update of a process that has all layers.

    It is one graph if the batch is one micro batch. If micro batches accumulate, there are two: one that each micro
    batch runs through and one that updates. A loop inside one graph works as well, but MindSpore's recomputation does
    not reach into a loop's body (tests/ascend).

    Args:
        loss: a Cell of (ids, weights, randomness, starts) -> scalar fp32.
        parameters: the parameters to differentiate by, in the order in which `optimizer` updates.
        optimizer: as in `GraphStep`, and so are grad_clip, reduction and all_gather.
        num_micro_batches: A, forward passes per update.
        has_dropout: whether the loss draws random numbers.
        splits_gradients: sum gradients over the processes in each micro batch, and keep this process' shards (ZeRO-2).
        row_length: tokens of the longest row, by which dropout counts positions; None: of the rows given.
    """

    def __init__(
        self,
        loss: nn.Cell,
        parameters: list[Parameter],
        optimizer: Optimizer,
        num_micro_batches: int,
        grad_clip: float | None,
        has_dropout: bool,
        reduction: GradientReduction | None = None,
        all_gather: nn.Cell | None = None,
        splits_gradients: bool = False,
        row_length: int | None = None,
    ):
        reduces_each = splits_gradients and num_micro_batches > 1
        assert reduction is not None or not reduces_each
        totals = ReductionTotals(reduction) if reduction is not None and reduces_each else reduction
        super().__init__(optimizer, grad_clip, totals, all_gather)
        gradients = Gradients(loss, ms.ParameterTuple(parameters), has_dropout, row_length)
        self.from_batch = self.accumulation = self.from_sums = None
        if num_micro_batches == 1:
            self.gradients, self.from_batch = gradients, UpdateFromBatch(self.update, gradients)
        else:
            self.sums = sums = GradientSums.of(list(optimizer.parameters) if reduces_each else parameters)
            self.accumulation = Accumulation(gradients, sums, reduction if reduces_each else None)
            self.from_sums = UpdateFromSums(self.update, sums)

    def update_graphs(self, inputs: StepInputs) -> list[Graph]:
        """Return one graph, or two if micro batches accumulate."""
        if self.from_batch is not None:
            return [(self.from_batch, self.batch_inputs(inputs))]
        return [(self.accumulation, inputs.micro_batch(0)), (self.from_sums, inputs.update_scalars())]

    def run(self, inputs: StepInputs, before_update: BeforeUpdate | None = None) -> tuple[Tensor, ...]:
        """Run forward and backward of every micro batch, then the update."""
        if self.accumulation is not None:
            for micro_batch in inputs.micro_batches():
                self.accumulation(*micro_batch)
        if before_update is not None:
            before_update(inputs)
        if self.from_batch is not None:
            return self.from_batch(*self.batch_inputs(inputs))
        return self.from_sums(*inputs.update_scalars())

    def batch_inputs(self, inputs: StepInputs) -> tuple[Tensor | None, ...]:
        """Return the inputs of `UpdateFromBatch`."""
        counted_fraction, _, *others = inputs.update_scalars()  # a micro batch has the loss scale
        return *inputs.micro_batch(0), counted_fraction, *others
