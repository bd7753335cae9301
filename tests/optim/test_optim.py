"""Schedules, AdamW and the loss scale against their definitions and against PyTorch and transformers."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from gpt2x.config import OptimizerConfig, ScheduleConfig
from gpt2x.ops import backend_of
from gpt2x.optim.loss_scale import LossScale
from gpt2x.optim.optimizers.adamw import AdamW
from gpt2x.optim.schedule import learning_rate
from gpt2x.runtime.device import set_up_device
from tests.support.models import CPU


def rates(total=100, peak=1e-3, **fields):
    schedule = ScheduleConfig(**fields)
    return [learning_rate(schedule, peak, update, total) for update in range(1, total + 1)]


@pytest.mark.parametrize("name", ["linear", "cosine", "cosine_restarts", "polynomial"])
def test_ends_at_the_final_ratio(name):
    found = rates(name=name, warmup_steps=10, final_ratio=0.1, num_cycles=3, power=2.0)
    assert found[0] == pytest.approx(1e-4)
    assert found[9] == pytest.approx(1e-3)
    assert max(found) == pytest.approx(1e-3)
    assert found[-1] == pytest.approx(1e-4)


def test_constant_and_linear():
    assert set(rates(name="constant")) == {1e-3}
    found = rates(total=11, name="linear", final_ratio=0.0)
    assert found == pytest.approx([1e-3 * (1 - i / 10) for i in range(11)])


def test_restarts_return_to_the_peak():
    found = rates(total=101, name="cosine_restarts", num_cycles=4, final_ratio=0.0)
    assert [index for index, rate in enumerate(found) if rate == pytest.approx(1e-3)] == [0, 25, 50, 75]


def test_warmup_by_ratio():
    assert rates(name="constant", warmup_ratio=0.2)[:20] == pytest.approx([1e-3 * i / 20 for i in range(1, 21)])


@pytest.mark.run
def test_shapes_equal_transformers():
    optimization = pytest.importorskip("transformers.optimization")
    torch = pytest.importorskip("torch")
    makers = {
        "linear": lambda o: optimization.get_linear_schedule_with_warmup(o, 10, 100),
        "cosine": lambda o: optimization.get_cosine_schedule_with_warmup(o, 10, 100),
        "cosine_restarts": lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, 10, 100, 3),
        "polynomial": lambda o: optimization.get_polynomial_decay_schedule_with_warmup(o, 10, 100, lr_end=0, power=2),
    }
    for name, make in makers.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        theirs = make(optimizer)
        schedule = ScheduleConfig(name=name, warmup_steps=10, final_ratio=0.0, num_cycles=3, power=2.0)
        for update in range(1, 100):  # their step 10 + s is our update 10 + s: warmup's last step has the peak
            optimizer.step()
            theirs.step()
            assert learning_rate(schedule, 1e-3, update, 100) == pytest.approx(theirs.get_last_lr()[0], abs=1e-9), name


def updates(bias_correction, count=5):
    set_up_device(CPU)
    generator = np.random.default_rng(0)
    values = [generator.standard_normal(shape).astype(np.float32) for shape in ((4, 3), (3,))]
    gradients = [[generator.standard_normal(v.shape).astype(np.float32) for v in values] for _ in range(count)]
    config = OptimizerConfig(name="adamw", learning_rate=1e-2, bias_correction=bias_correction)
    parameters = [Parameter(Tensor(value), name=f"p{index}") for index, value in enumerate(values)]
    optimizer = AdamW(config, parameters, backend_of(CPU))
    for index, gradient in enumerate(gradients):
        optimizer(
            tuple(Tensor(g) for g in gradient),
            Tensor(1.0, ms.float32),
            Tensor(True),
            optimizer.scalars(1e-2, index + 1),
        )
    return values, gradients, [p.asnumpy() for p in parameters]


@pytest.mark.run
def test_adamw_equals_pytorch():
    torch = pytest.importorskip("torch")
    values, gradients, mine = updates(bias_correction=True)
    theirs = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    groups = [{"params": [theirs[0]], "weight_decay": 0.1}, {"params": [theirs[1]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for gradient in gradients:
        for parameter, value in zip(theirs, gradient, strict=True):
            parameter.grad = torch.tensor(value)
        optimizer.step()
    for parameter, value in zip(theirs, mine, strict=True):
        assert np.abs(parameter.detach().numpy() - value).max() <= 1e-6


@pytest.mark.run
def test_adamw_without_bias_correction():
    values, gradients, mine = updates(bias_correction=False)
    for index, value in enumerate(values):
        value, mean, square = value.astype(np.float64), 0.0, 0.0
        for gradient in gradients:
            mean = 0.9 * mean + 0.1 * gradient[index]
            square = 0.95 * square + 0.05 * gradient[index] ** 2
            value = value * (1 - 1e-2 * (0.1 if index == 0 else 0.0)) - 1e-2 * mean / (np.sqrt(square) + 1e-8)
        assert np.abs(value - mine[index]).max() <= 1e-5


def test_loss_scale():
    scale = LossScale(8.0, 2.0, 3)
    for _ in range(3):
        scale.update(finite=True)
    assert scale == LossScale(16.0, 2.0, 3, 0)
    scale.update(finite=True)
    scale.update(finite=False)
    assert scale == LossScale(8.0, 2.0, 3, 0)
    for _ in range(9):
        scale.update(finite=False)
    assert scale.scale == 1.0
