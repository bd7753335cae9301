"""Small models that several test files build."""

from __future__ import annotations

import numpy as np

from gpt2x.config import HardwareConfig, ModelConfig

CPU = HardwareConfig(
    name="cpu", device_target="CPU", precision="fp32", memory_gb=None, peak_tflops=None, devices_per_node=1,
    flash_attention=False, source="test",
)  # fmt: skip


def tiny_model(**changes) -> ModelConfig:
    values = {"name": "test", "num_layers": 2, "num_heads": 4, "hidden_size": 32, "max_seq_len": 32, "vocab_size": 101}
    return ModelConfig(**(values | {"dropout": 0.0} | changes))


def build(model: ModelConfig, seed: int = 0, hardware: HardwareConfig = CPU, **options):
    """A net with fresh weights."""
    from gpt2x.model.gpt2 import GPT2, initial_weights, load_weights
    from gpt2x.runtime.device import set_up_device

    set_up_device(hardware)
    net = GPT2(model, hardware, **options)
    load_weights(net, initial_weights(model, seed))
    return net


def random_ids(model: ModelConfig, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, model.vocab_size, shape).astype(np.int32)
