"""Optimizers by their kind: the files of `gpt2x/optim/optimizers` (no mindspore until one is created)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2x.config import OptimizerConfig
from gpt2x.extensions import Extensions

if TYPE_CHECKING:
    from mindspore import Parameter

    from gpt2x.ops import Backend
    from gpt2x.optim.base import Optimizer

OPTIMIZERS = Extensions("gpt2x.optim.optimizers", "OPTIMIZER", key="optimizer.kind")


def state_names(kind: str) -> tuple[str, ...]:
    """Return the names of the fp32 states that an optimizer keeps per trained value: its module's `STATES`.

    The module is read, not imported: the planner asks, and it works where mindspore is not installed.

    Raises:
        UserError: there is no such optimizer, or its module does not define `STATES`.
    """
    return tuple(OPTIMIZERS.literal(kind, "STATES"))


def create_optimizer(
    config: OptimizerConfig, parameters: list[Parameter], backend: Backend, rate_factors: list[float] | None = None
) -> Optimizer:
    """Return the optimizer that `optimizer.kind` names, for `parameters`.

    Args:
        config: the group `optimizer`.
        parameters: updated in place, in this order.
        backend: the operators.
        rate_factors: as in `gpt2x.optim.base.Optimizer`.

    Raises:
        UserError: there is no such optimizer.
    """
    optimizer: Optimizer = OPTIMIZERS.load(config.kind)(config, parameters, backend, rate_factors)
    assert optimizer.state_names == state_names(config.kind), f"{config.kind}.py: state_names is not STATES"
    return optimizer
