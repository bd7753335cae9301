"""Adapted nets that several test files build."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gpt2x.config import LoraConfig, ModelConfig, ParallelConfig
from gpt2x.config.patterns import adapted_modules, scaling
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.lora.cells import add_adapters, initial_factors
from gpt2x.lora.shapes import factor_shapes
from gpt2x.parallel.mesh import Mesh
from tests.support.models import CPU, build

EVERYWHERE = ["q", "k", "v", "c_proj", "c_fc"]


def lora_config(**changes) -> LoraConfig:
    return LoraConfig(**({"name": "test", "rank": 4, "alpha": 8.0, "dropout": 0.0} | changes))


def random_factors(lora: LoraConfig, model: ModelConfig, seed: int = 1) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in factor_shapes(lora, model).items()}


def adapter_of(factors: dict[str, np.ndarray], lora: LoraConfig, model: ModelConfig, **changes) -> Adapter:
    products = {
        module: Product(factors[f"{module}.lora_A"], factors[f"{module}.lora_B"], scaling(lora))
        for module in adapted_modules(lora, model.num_layers)
    }
    values = {"path": None, "num_layers": model.num_layers, "rank_stabilized": lora.rank_stabilized}
    return Adapter(products=products, **(values | changes))


def adapted(model: ModelConfig, lora: LoraConfig, factors: dict[str, np.ndarray] | None = None, hardware=CPU):
    """A net with fresh weights and adapters: fresh ones where none are given."""
    net = build(model, hardware=hardware)
    add_adapters(net, model, lora, Mesh(ParallelConfig(name="single")))
    factors = initial_factors(lora, model, 0) if factors is None else factors
    for parameter in net.trainable_params():
        parameter.set_data(Tensor(factors[parameter.name]))
    return net


class Logits(nn.Cell):
    def __init__(self, net):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, ids, randomness=None):
        return self.net.logits(self.net(ids, randomness))

    def of(self, ids, randomness=None):
        """ids (B, T) -> (B, T, V); a later call with inputs of the same shapes compiles nothing."""
        return self(Tensor(ids), randomness).asnumpy().reshape(*ids.shape, -1)


def logits_of(net, ids, randomness=None):
    return Logits(net).of(ids, randomness)


def randomness_of(shape: tuple[int, int], key: int = 7, first: int = 0):
    rows = np.arange(first, first + shape[0] * shape[1], dtype=np.int32).reshape(-1, 1)
    return Tensor(key, ms.int32), Tensor(rows)


def lazy(values):
    """Arrays as a checkpoint's tensors."""
    from gpt2x.checkpoint.tensors import LazyTensors, Spec

    def read(name, start, shape):
        return values[name][tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))]

    return LazyTensors({name: Spec(value.shape, value.dtype) for name, value in values.items()}, read)
