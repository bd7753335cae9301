"""Which `parallel.zero_stage` a run can train with (no mindspore); docs/design/full_sharding.md has the reasons."""

from __future__ import annotations

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig
from gpt2x.config.layout import Coordinates
from gpt2x.trainable import Trainable

FULL = 3  # replicas split the weights of blocks


def highest_stage(config: TrainConfig, trainable: Trainable) -> tuple[int, str]:
    """Return the highest `zero_stage` of a run, whatever its layout, and the key that limits it; "" if none does.

    Args:
        config: a typed configuration.
        trainable: what it trains, of a model with its vocabulary.
    """
    if config.optimizer.layer_decay is not None:
        return 2, f"optimizer.layer_decay={config.optimizer.layer_decay:g}"
    if not trains_blocks_alike(trainable):
        return 2, "lora.targets" if trainable.is_adapter else "trainer.frozen"
    return FULL, ""


def trains_blocks_alike(trainable: Trainable) -> bool:
    """Return whether the same tensors are trained in all blocks."""
    if trainable.is_whole:
        return True
    by_block: dict[str, set[str]] = {f"{layer}": set() for layer in range(trainable.model.num_layers)}
    whole = Coordinates(ParallelConfig(name="single"), 0)
    for name in trainable.trained_placements(whole):
        if name.startswith("h."):
            _, layer, suffix = name.split(".", 2)
            by_block[layer].add(suffix)
    return len({frozenset(suffixes) for suffixes in by_block.values()}) == 1


def stage_of_layout(parallel: ParallelConfig, model: ModelConfig, hardware: HardwareConfig) -> tuple[int, str]:
    """Return the highest `zero_stage` of a layout by itself, and the key that limits it; "" if none does."""
    if parallel.data == 1:
        return 0, "parallel.data=1"
    if model.num_layers // parallel.pipeline < parallel.num_slots(hardware.is_cpu):  # one computes, one is gathered
        return 2, f"parallel.pipeline={parallel.pipeline} with model.num_layers={model.num_layers}"
    return FULL, ""
