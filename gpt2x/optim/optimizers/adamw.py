"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) with fp32 states, one fused kernel per tensor."""

from __future__ import annotations

import math

import numpy as np
from mindspore import Parameter, Tensor

from gpt2x.config import OptimizerConfig
from gpt2x.ops import Backend
from gpt2x.optim.base import Optimizer

STATES = ("mean", "square")  # decaying means of the gradients and of their squares


class AdamW(Optimizer):
    """Decoupled weight decay and Adam, computed by the backend.

    The kernels do not correct the means' bias; `scalars` folds the correction into the rate and eps, so that the
    update is PyTorch's exactly: m / c1 / (sqrt(v / c2) + eps) = (sqrt(c2) / c1) m / (sqrt(v) + eps sqrt(c2)).
    """

    state_names = STATES

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: list[Parameter],
        backend: Backend,
        rate_factors: list[float] | None = None,
    ):
        super().__init__(config, parameters, backend, rate_factors)
        self.used_groups = self.groups if self.has_groups else None
        self.update = backend.adamw(config.beta1, config.beta2)

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, ...]:
        """Return three scalars that the backend's update takes; two are (G,) if there are groups of rates."""
        config = self.config
        rates = learning_rate * (self.group_rate_factors if self.has_groups else np.float64(1.0))
        correction1 = 1 - config.beta1**update if config.bias_correction else 1.0
        correction2 = math.sqrt(1 - config.beta2**update) if config.bias_correction else 1.0
        return self.update.scalars(
            rates * correction2 / correction1, config.eps * correction2, rates * config.weight_decay
        )

    def construct(self, gradients, factor, finite, scalars):
        """Update every parameter in place by gradients times `factor`; if `finite` is false, change nothing."""
        tensors = self.parameters, self.mean, self.square, gradients, self.decays, self.used_groups
        return self.update(*tensors, factor, finite, *scalars)


OPTIMIZER = AdamW
