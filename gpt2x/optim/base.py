"""What every optimizer has: its parameters, its fp32 states, its groups of learning rates."""

from __future__ import annotations

from abc import abstractmethod

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x.config import OptimizerConfig
from gpt2x.ops import Backend


class Optimizer(nn.Cell):
    """Updates its parameters in place.

    A subclass is the `OPTIMIZER` of a module in `gpt2x/optim/optimizers`. The module also defines `STATES`, a tuple of
    names, and the subclass has `state_names = STATES`. For each name and each parameter there is one fp32 state, zero
    at first, called NAME.PARAMETER in checkpoints. The attribute NAME is the tuple of all parameters' states.

    Args:
        config: learning rate, weight decay and so on.
        parameters: the parameters to update.
        backend: the operators, among them the norm of the gradients.
        rate_factors: factor of the learning rate per parameter (`gpt2x.optim.layer_decay`); None: 1 for all.

    Attributes:
        has_groups: whether parameters have different rates.
        decays: per parameter, whether weight decay applies.
        group_rate_factors: (G,) float64, the different factors.
        groups: per parameter, the index of its factor as an int32 scalar.
    """

    state_names: tuple[str, ...] = ()

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: list[Parameter],
        backend: Backend,
        rate_factors: list[float] | None = None,
    ):
        super().__init__(auto_prefix=False)
        self.config, self.backend, self.has_groups = config, backend, rate_factors is not None
        self.parameters = ms.ParameterTuple(parameters)
        for name in self.state_names:
            setattr(self, name, zero_states(name, parameters))
        self.decays = tuple(has_weight_decay(parameter) and config.weight_decay > 0 for parameter in parameters)
        self.group_rate_factors, indices = np.unique(rate_factors or np.ones(len(parameters)), return_inverse=True)
        self.groups = tuple(Tensor(int(index), ms.int32) for index in indices)
        self.for_each = ops.HyperMap()

    @property
    def states(self) -> dict[str, ms.ParameterTuple]:
        """Name -> the states of all parameters, in their order."""
        return {name: getattr(self, name) for name in self.state_names}

    @abstractmethod
    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        """Return what `construct` takes as `scalars`.

        Args:
            learning_rate: the schedule's rate, of which a parameter's is `group_rate_factors` of its group.
            update: the number of this update, from 1; updates skipped for non-finite gradients do not count.
        """

    @abstractmethod
    def construct(self, gradients, factor, finite, scalars):
        """Update every parameter and its states in place.

        Args:
            gradients: one per parameter, of its shape.
            factor: fp32 scalar to multiply every gradient by.
            finite: bool scalar; if it is false, nothing may change.
            scalars: those of this update.
        """


def zero_states(name: str, parameters: list[Parameter]) -> ms.ParameterTuple:
    """Return a zero state called NAME.PARAMETER for each parameter."""
    return ms.ParameterTuple(
        [Parameter(initializer("zeros", p.shape, ms.float32), name=f"{name}.{p.name}") for p in parameters]
    )


def has_weight_decay(parameter: Parameter) -> bool:
    """Return False for biases and layer norms (1-D), as in GPT-2's and the reference's parameter groups."""
    return len(parameter.shape) > 1
