"""Layer-wise decay of the learning rate against PyTorch's parameter groups."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gpt2x.config import OptimizerConfig
from gpt2x.ops import backend_of
from gpt2x.optim.layer_decay import layer_rate_factors
from gpt2x.optim.optimizers.adamw import AdamW
from gpt2x.runtime.device import set_up_device
from tests.support.models import CPU

pytestmark = pytest.mark.run  # compiles updates
SHAPES = {"wte.weight": (7, 4), "wpe.weight": (5, 4), "h.0.ln_1.weight": (4,), "h.0.attn.c_attn.weight": (4, 12),
          "h.1.mlp.c_fc.weight": (4, 16), "h.1.attn.q.lora_A": (4, 2), "ln_f.weight": (4,), "lm_head.weight": (7, 4),
          "score.weight": (3, 4)}  # fmt: skip
SHARES = {"wte.weight": 0.8**3, "wpe.weight": 0.8**3, "h.0.ln_1.weight": 0.8**2, "h.0.attn.c_attn.weight": 0.8**2,
          "h.1.mlp.c_fc.weight": 0.8, "h.1.attn.q.lora_A": 0.8, "ln_f.weight": 1.0, "lm_head.weight": 1.0,
          "score.weight": 1.0}  # fmt: skip


def config_of(layer_decay: float | None) -> OptimizerConfig:
    return OptimizerConfig(name="adamw", learning_rate=1e-2, layer_decay=layer_decay)


def test_shares_are_those_of_the_convention():
    found = layer_rate_factors(config_of(0.8), list(SHAPES), num_layers=2)
    assert dict(zip(SHAPES, found, strict=True)) == pytest.approx(SHARES, abs=1e-12)
    assert (
        layer_rate_factors(config_of(None), list(SHAPES), 2)
        is layer_rate_factors(config_of(1.0), list(SHAPES), 2)
        is None
    )


class Run:
    """Updates of all shapes by fixed gradients, in a graph."""

    def __init__(self, count: int = 5):
        set_up_device(CPU)
        random = np.random.default_rng(0)
        self.values = {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
        self.gradients = [
            [random.standard_normal(shape).astype(np.float32) for shape in SHAPES.values()] for _ in range(count)
        ]

    def ours(self, layer_decay: float | None) -> dict[str, np.ndarray]:
        config = config_of(layer_decay)
        parameters = [Parameter(Tensor(value), name=name) for name, value in self.values.items()]
        optimizer = AdamW(config, parameters, backend_of(CPU), layer_rate_factors(config, list(SHAPES), num_layers=2))
        for index, gradient in enumerate(self.gradients):
            rate = 1e-2 / (index + 1)  # as a schedule does
            optimizer(
                ms.mutable(tuple(Tensor(g) for g in gradient)),
                Tensor(1.0, ms.float32),
                Tensor(True),
                optimizer.scalars(rate, index + 1),
            )
        return {parameter.name: parameter.asnumpy() for parameter in parameters}

    def theirs(self) -> dict[str, np.ndarray]:
        torch = pytest.importorskip("torch")
        parameters = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in self.values.items()}
        groups = [
            {"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0, "share": SHARES[name]}
            for name, p in parameters.items()
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
        for index, gradient in enumerate(self.gradients):
            for group, value in zip(optimizer.param_groups, gradient, strict=True):
                group["lr"] = 1e-2 / (index + 1) * group["share"]
                group["params"][0].grad = torch.tensor(value)
            optimizer.step()
        return {name: parameter.detach().numpy() for name, parameter in parameters.items()}


def test_equals_pytorch_with_parameter_groups():
    run = Run()
    mine, theirs = run.ours(0.8), run.theirs()
    worst = max(np.abs(mine[name] - theirs[name]).max() for name in SHAPES)
    print(f"largest difference from torch {worst:.2e}")
    assert worst <= 1e-6
    plain = run.ours(None)
    assert np.abs(plain["wte.weight"] - mine["wte.weight"]).max() > 1e-3


def test_the_part_with_the_whole_rate_is_that_without_decay_bit_for_bit():
    run = Run()
    with_decay, without = run.ours(0.8), run.ours(None)
    for name, share in SHARES.items():
        assert np.array_equal(with_decay[name], without[name]) == (share == 1.0), name
