"""AdamW (Loshchilov and Hutter, arXiv:1711.05101) with fp32 states, one fused kernel a tensor."""

from __future__ import annotations

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from gpt2x import native
from gpt2x.config import OptimizerConfig
from gpt2x.model.stats import depth

update_parameter = ops.MultitypeFuncGraph("update_parameter")  # a Python loop over hundreds of tensors exceeds the
update_by_group = ops.MultitypeFuncGraph("update_by_group")  #     depth to which MindSpore unrolls loops
adam = ops.Adam()


@update_parameter.register(
    "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Bool"
)
def _update_parameter(beta1, beta2, factor, rate, eps, keep, parameter, mean, square, gradient, decays):
    """Update one tensor and its two states in place."""
    if decays:
        ops.assign(parameter, parameter * keep)
    adam(parameter, mean, square, 0.0, 0.0, rate, beta1, beta2, eps, gradient * factor)
    return True


@update_by_group.register(
    "Number", "Number", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Tensor", "Bool", "Tensor"
)
def _update_by_group(beta1, beta2, factor, rates, eps, keeps, parameter, mean, square, gradient, decays, group):
    """As `update_parameter`, by the rate and the decay factor of the parameter's group."""
    rate, keep = ops.gather(rates, group, 0), ops.gather(keeps, group, 0)
    return update_parameter(beta1, beta2, factor, rate, eps, keep, parameter, mean, square, gradient, decays)


def native_updates(beta1: float, beta2: float) -> tuple[ops.MultitypeFuncGraph, ops.MultitypeFuncGraph]:
    """`update_parameter` and `update_by_group` by our own kernel, without betas and with `finite` after `factor`."""
    kernel = native.operator("adamw", lambda *_: [1], in_place=True)
    betas, one = Tensor(np.array([beta1, beta2], np.float32)), Tensor(1.0, ms.float32)
    update = ops.MultitypeFuncGraph("native_update")
    by_group = ops.MultitypeFuncGraph("native_update_by_group")

    @update.register(*["Tensor"] * 9, "Bool")
    def _native_update(factor, finite, rate, eps, keep, parameter, mean, square, gradient, decays):
        own_keep = keep if decays else one
        kernel(parameter, mean, square, gradient, factor, finite, rate, eps, own_keep, betas)
        return True

    @by_group.register(*["Tensor"] * 9, "Bool", "Tensor")
    def _native_by_group(factor, finite, rates, eps, keeps, parameter, mean, square, gradient, decays, group):
        own_keep = ops.gather(keeps, group, 0) if decays else one
        rate = ops.gather(rates, group, 0)
        kernel(parameter, mean, square, gradient, factor, finite, rate, eps, own_keep, betas)
        return True

    return update, by_group


class AdamW(nn.Cell):
    """Decoupled weight decay and Adam: in one pass by our own kernel, else MindSpore's fused Adam after the decay.

    MindSpore's own bias correction is switched off (its beta powers are 0); `scalars` folds the correction into
    the rate and eps, so that the update is PyTorch's exactly: m / c1 / (sqrt(v / c2) + eps)
    = (sqrt(c2) / c1) m / (sqrt(v) + eps sqrt(c2)).
    Measured on 12.9 M values here: ops.Adam 9 ms, ops.AdamWeightDecay 64 ms.

    Args:
        config: rate, betas, decay.
        parameters: what is updated in place.
        shares: of the rate, one a parameter (`layer_shares`); None: each has all of it.
    """

    def __init__(self, config: OptimizerConfig, parameters: list[Parameter], shares: list[float] | None = None):
        super().__init__(auto_prefix=False)
        self.config = config
        self.parameters = ms.ParameterTuple(parameters)
        self.mean = ms.ParameterTuple([state(parameter, "mean") for parameter in parameters])
        self.square = ms.ParameterTuple([state(parameter, "square") for parameter in parameters])
        self.decays = tuple(decays(parameter) and config.weight_decay > 0 for parameter in parameters)
        self.group_rate_factors = np.unique(shares) if shares else np.float64(1.0)
        indices = np.searchsorted(self.group_rate_factors, shares) if shares else ()
        self.groups = tuple(Tensor(int(index), ms.int32) for index in indices) or None
        self.for_each = ops.HyperMap()
        self.native = native_updates(config.beta1, config.beta2) if native.is_on() else None

    def scalars(self, learning_rate: float, update: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rate, eps and decay factor of the `update`-th update (from 1), as the kernel wants them; the first and the
        last of each group of parameters, where shares of the rate differ.
        """
        config, rates = self.config, learning_rate * self.group_rate_factors
        correction1 = 1 - config.beta1**update if config.bias_correction else 1.0
        correction2 = math.sqrt(1 - config.beta2**update) if config.bias_correction else 1.0
        values = (
            rates * correction2 / correction1,
            config.eps * correction2,
            1 - rates * config.weight_decay,
        )
        rate, eps, keep = (Tensor(np.float32(value)) for value in values)
        return rate, eps, keep

    def construct(self, gradients, factor, finite, rate, eps, keep):
        """Update every parameter in place by gradients times `factor`; where `finite` is false nothing is changed."""
        tensors = self.parameters, self.mean, self.square, gradients, self.decays
        if self.native is not None:
            if self.groups is None:
                self.for_each(ops.partial(self.native[0], factor, finite, rate, eps, keep), *tensors)
            else:
                self.for_each(ops.partial(self.native[1], factor, finite, rate, eps, keep), *tensors, self.groups)
        elif finite:
            beta1, beta2 = self.config.beta1, self.config.beta2
            if self.groups is None:
                self.for_each(ops.partial(update_parameter, beta1, beta2, factor, rate, eps, keep), *tensors)
            else:
                update = ops.partial(update_by_group, beta1, beta2, factor, rate, eps, keep)
                self.for_each(update, *tensors, self.groups)
        return True


def layer_rate_factors(config: OptimizerConfig, names: list[str], num_layers: int) -> list[float] | None:
    """Each tensor's share of the learning rate, layer_decay ** (num_layers + 1 - depth): all of it behind the last
    block, the least in the embeddings; None where there is no decay over layers.

    As in ELECTRA's fine-tuning (Clark et al., arXiv:2003.10555), with the exponents of MAE's `param_groups_lrd` and
    BEiT's `get_num_layer_for_vit`.
    """
    if config.layer_decay in (None, 1.0):
        return None
    return [config.layer_decay ** (num_layers + 1 - depth(name, num_layers)) for name in names]


def state(parameter: Parameter, name: str) -> Parameter:
    """A zero state beside `parameter`."""
    return Parameter(initializer("zeros", parameter.shape, ms.float32), name=f"{name}.{parameter.name}")


def decays(parameter: Parameter) -> bool:
    """Biases and layer norms (1-D) do not decay, as in GPT-2's and the reference's groups."""
    return len(parameter.shape) > 1
