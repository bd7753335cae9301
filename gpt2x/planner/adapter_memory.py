"""Bytes of a training step whose weights are frozen, from those of full training (no mindspore)."""

from __future__ import annotations

import math
from dataclasses import replace

from gpt2x.config import HardwareConfig, LoraConfig, ModelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.lora.shapes import A, trained_placements
from gpt2x.model import stats
from gpt2x.parallel.placement import placements
from gpt2x.planner.memory import FP32, Memory, cpu_units


def adapter_memory(
    full: Memory, model: ModelConfig, lora: LoraConfig, coordinates: Coordinates, hardware: HardwareConfig, rows: int
) -> Memory:
    """The estimate for adapters.

    Args:
        full: that of training all weights (`gpt2x.planner.memory.step_memory`).
        model: with its vocabulary known.
        lora: with a rank.
        place: the process.
        hardware: whether memory is reused as on Ascend or measured as on the CPU.
        rows: tokens of a micro batch.
    """
    is_cpu, units = hardware.is_cpu, cpu_units(hardware)
    trained = trained_placements(lora, model, coordinates)
    own = sum(math.prod(part.shape) for part in trained.values())
    weights = sum(math.prod(part.shape) for part in placements(model, coordinates).values())
    kept = units.adapter_dropout * FP32 if is_cpu else FP32 + stats.BYTES[hardware.precision]  # mask and product
    inputs = sum(part.shape[0] for name, part in trained.items() if name.endswith(A)) if lora.dropout else 0
    return replace(
        full,
        weights=full.weights + FP32 * own,
        gradients=FP32 * (units.frozen * weights + units.gradients * own if is_cpu else own),
        optimizer=full.optimizer * own / weights,
        activations=full.activations + kept * rows * inputs,
        buffers=min(full.buffers, 2 * FP32 * own),
    )
