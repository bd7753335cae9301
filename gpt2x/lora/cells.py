"""Adapters as cells, added beside the linears of a built model.

Shapes in comments are those of the line's result. Legend: R rows (tokens), r rank.
"""

from __future__ import annotations

import numpy as np
from mindspore import nn, ops

from gpt2x.config import LoraConfig, ModelConfig
from gpt2x.config.patterns import MODULES, SEGMENTS, scaling
from gpt2x.lora.shapes import A, B, factor_placements, factor_shapes, linear_of, split
from gpt2x.model.gpt2 import GPT2, Linear, zeros
from gpt2x.model.stats import HEAD
from gpt2x.ops import Backend, Dropout
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Placement


class Factors(nn.Cell):
    """The two factors of a module.

    Args:
        inputs: the placement of A; its rows are inputs of this process.
        outputs: the placement of B.
        before: columns of the linear before those of the module, on this process.
        after: columns after them.
        dtype: of the computation.
        dropout: on the input, or None.
    """

    def __init__(self, inputs: Placement, outputs: Placement, before: int, after: int, dtype, dropout: nn.Cell | None):
        super().__init__()
        self.lora_A = zeros(*inputs.shape)
        self.lora_B = zeros(*outputs.shape)
        # No concatenation with zeros: with many of those, MindSpore 2.10 takes exponentially long to compile a graph
        self.pad = ops.Pad(((0, 0), (before, after))) if before or after else None
        self.dtype, self.dropout = dtype, dropout

    def enter(self, rows, randomness):
        """rows (R, in) -> (R, r)."""
        if self.dropout is not None and randomness is not None:
            # the last element of randomness has the rows of all tokens, as the input of a linear
            rows = self.dropout(rows, randomness[0], randomness[-1])  # (R, in)
        return ops.matmul(rows, ops.cast(self.lora_A, self.dtype))  # (R, r)

    def spread(self):
        """Return B with zero columns for the rest of the linear (r, out)."""
        columns = self.lora_B if self.pad is None else self.pad(self.lora_B)
        return ops.cast(columns, self.dtype)  # (r, out)


class Adapters(nn.Cell):
    """The sum over the adapted modules of one linear: s (x A) B."""

    def __init__(self, parts: list[Factors], scale: float):
        super().__init__()
        self.parts, self.scale = nn.CellList(parts), scale

    def construct(self, x, randomness):
        """x (..., in); randomness as in `GPT2.construct` -> (R, out)."""
        rows = x.reshape(-1, x.shape[-1])  # (R, in)
        total = None
        for part in self.parts:
            added = ops.matmul(part.enter(rows, randomness) * self.scale, part.spread())  # (R, out)
            total = added if total is None else total + added
        return total


def add_adapters(net: GPT2, model: ModelConfig, lora: LoraConfig, mesh: Mesh) -> None:
    """Add adapters without values beside the linears of `net` that `lora` targets; freeze the rest except a class head.

    A column parallel linear has this process' columns of B, a row parallel linear its rows of A. The other factor is
    a copy whose gradient is partial on each process (`gpt2x.parallel.gradient_reduction.LocalParameter.is_partial`).

    Args:
        net: this process' part of the model, with all layers. If A B is zero, each linear computes what it did before.
        model: its configuration.
        lora: its rank is not None.
        mesh: the processes.
    """
    coordinates = mesh.coordinates
    names = {id(parameter): parameter.name for parameter in net.get_parameters()}
    for parameter in net.get_parameters():
        parameter.requires_grad = parameter.name == HEAD
    places = factor_placements(lora, model, coordinates)
    by_linear: dict[str, list[str]] = {}
    for name in places:
        if name.endswith(A):
            module = name.removesuffix(f".{A}")
            by_linear.setdefault(linear_of(module)[0], []).append(module)
    for path, modules in by_linear.items():
        linear = linear_at(net, path)
        parts = []
        for module in modules:
            inputs, outputs = places[f"{module}.{A}"], places[f"{module}.{B}"]
            segment, width = linear_of(module)[1], outputs.shape[1]
            before, after = (0, 0) if segment is None else (segment * width, (len(SEGMENTS) - 1 - segment) * width)
            dropout = input_dropout(lora, model, module, inputs, linear.backend)
            part = Factors(inputs, outputs, before, after, linear.dtype, dropout)
            names |= {id(part.lora_A): f"{module}.{A}", id(part.lora_B): f"{module}.{B}"}
            parts.append(part)
        branch = Adapters(parts, scaling(lora))
        linear.branch = branch
        if coordinates.parallel.recompute == "block" and not coordinates.parallel.splits_weights:
            branch.recompute()
    for parameter in net.get_parameters():
        parameter.name = names[id(parameter)]  # cells rename the parameters that they receive


def linear_at(net: GPT2, path: str) -> Linear:
    """Return the linear of a name such as `h.0.attn.c_attn`."""
    layer, part = split(path)
    cell = net.h[int(layer.removeprefix("h."))]
    for name in part.split("."):
        cell = getattr(cell, name)
    return cell


def input_dropout(
    lora: LoraConfig, model: ModelConfig, module: str, inputs: Placement, backend: Backend
) -> Dropout | None:
    """Return the dropout before a module's A, whose mask does not depend on the layout; None if the rate is 0.

    It is the same operator on every process. If graphs differ, their collectives run in different orders.
    """
    site = 1 + 3 * model.num_layers + number_of(module)  # after the model's own sites (gpt2x.model.gpt2.Block)
    return backend.dropout(lora.dropout, site, inputs.shape[0], first=inputs.boxes[0].start[0])


def initial_factors(lora: LoraConfig, model: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Return fresh factors: A uniform in +-1 / sqrt(in), B zero, so that an adapter changes nothing at first.

    This is PEFT's default (peft/tuners/lora/layer.py, `reset_lora_parameters`: Kaiming's uniform with a = sqrt(5)).
    A module's values depend only on the seed and its name.
    """
    factors = {}
    for name, shape in factor_shapes(lora, model).items():
        module, _, factor = name.rpartition(".")
        if factor == B:
            factors[name] = np.zeros(shape, np.float32)
        else:  # a stream that no tensor of the model has (gpt2x.model.gpt2.InitialWeights)
            generator = np.random.Generator(np.random.Philox(key=[seed % 2**64, 2**63 + number_of(module)]))
            factors[name] = (generator.random(shape, np.float32) * 2 - 1) * np.float32(shape[0] ** -0.5)
    return factors


def number_of(module: str) -> int:
    """Return a number that no other module of the model has, whichever modules are adapted."""
    layer, part = split(module)
    return int(layer.removeprefix("h.")) * len(MODULES) + MODULES.index(part)
