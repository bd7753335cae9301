"""Names, shapes and placements of the factors of adapters.

A module `M` with the weight W (in, out) gets `M.lora_A` (in, r) and `M.lora_B` (r, out), and computes x (W + s A B).
This is the layout of GPT-2's `Conv1D`, so that A B has the shape of W. `M` is a linear, or one of `attn.q`, `attn.k`
and `attn.v`, each of which is a third of the columns of `attn.c_attn`.
"""

from __future__ import annotations

import math

from gpt2x.config import LoraConfig, ModelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.config.patterns import FUSED, SEGMENTS, adapted_modules
from gpt2x.model import stats
from gpt2x.model.stats import HEAD, outer_shapes
from gpt2x.parallel.placement import Placement, holds, placement, placements

Shape = tuple[int, ...]
A, B = "lora_A", "lora_B"
GROUP = "adapter"  # the group of tensors in a checkpoint


def linear_of(module: str) -> tuple[str, int | None]:
    """Return the linear that computes a module, and which third of its columns the module is (None: all of them)."""
    layer, part = split(module)
    return (f"{layer}.{FUSED}", SEGMENTS.index(part)) if part in SEGMENTS else (module, None)


def split(module: str) -> tuple[str, str]:
    """Split a module's name: `h.0.attn.q` -> `h.0`, `attn.q`."""
    _, number, part = module.split(".", 2)
    return f"h.{number}", part


def module_shapes(model: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the shape (in, out) of every module that can be adapted."""
    block = stats.block_shapes(model)
    shapes = {}
    for layer in range(model.num_layers):
        for name, shape in block.items():
            part = name.removesuffix(".weight")
            if len(shape) == 2:
                shapes[f"h.{layer}.{part}"] = (shape[0], shape[1])
        shapes |= {f"h.{layer}.{part}": (model.hidden_size, model.hidden_size) for part in SEGMENTS}
    return shapes


def factor_shapes(lora: LoraConfig, model: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of the factors of all adapted modules, by name.

    Raises:
        UserError: `lora.targets` does not fit the model.
    """
    assert lora.rank is not None
    modules = module_shapes(model)
    shapes: dict[str, Shape] = {}
    for module in adapted_modules(lora, model.num_layers):
        num_inputs, num_outputs = modules[module]
        shapes |= {f"{module}.{A}": (num_inputs, lora.rank), f"{module}.{B}": (lora.rank, num_outputs)}
    return shapes


def factor_placements(lora: LoraConfig, model: ModelConfig, coordinates: Coordinates) -> dict[str, Placement]:
    """Return the placements of the factors on the process at `coordinates`."""
    return {
        name: placement(name, shape, model, coordinates)
        for name, shape in factor_shapes(lora, model).items()
        if holds(name, model, coordinates)
    }


def trained_shapes(lora: LoraConfig, model: ModelConfig) -> dict[str, Shape]:
    """Return the shapes of everything that is trained: the factors, and a classifier's head."""
    return factor_shapes(lora, model) | {name: shape for name, shape in outer_shapes(model).items() if name == HEAD}


def trained_placements(lora: LoraConfig, model: ModelConfig, coordinates: Coordinates) -> dict[str, Placement]:
    """Return the placements of everything that is trained on the process at `coordinates`."""
    head = {name: part for name, part in placements(model, coordinates).items() if name == HEAD}
    return factor_placements(lora, model, coordinates) | head


def num_trainable(lora: LoraConfig, model: ModelConfig) -> int:
    """Return the number of trained values."""
    return sum(math.prod(shape) for shape in trained_shapes(lora, model).values())


def train_flops_per_token(lora: LoraConfig, model: ModelConfig, seq_len: int) -> float:
    """Return the floating-point operations of forward and backward per token.

    No gradient of the frozen weights is computed, so they cost four operations per value and token instead of six.
    """
    return 2 * stats.forward_flops_per_token(model, seq_len) + 6 * num_trainable(lora, model)
