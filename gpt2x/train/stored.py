"""What a checkpoint has to hold so that a run can continue from it: a configuration and a position of possible types.

The manifest's hash tells damage, and not who wrote it.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gpt2x.checkpoint import Checkpoint
from gpt2x.config import TrainConfig
from gpt2x.config.keys import flatten, groups, has_type, leaves
from gpt2x.errors import UserError
from gpt2x.optim.loss_scale import LossScale

GROUPS = ("task", "model", "trainer", "hardware", "optimizer", "schedule", "dataset", "tokenizer", "parallel")
COUNTS = ("step", "num_updates", "skipped_in_a_row", "epoch", "batch", "units_seen", "evaluations_without_gain")
OTHERS = {"best_step": "int | None", "best_value": "float | None", "data_sha256": "str", "base_path": "str | None",
          "base_fingerprint": "str", "bests": "dict"}  # fmt: skip
FIX = "No run can continue from it; start a new one with load=, or use a different checkpoint."


def check_training(saved: Checkpoint) -> None:
    """Check that a checkpoint is of a training. Keys that older versions did not have may be missing.

    Raises:
        UserError: names what is missing or impossible.
    """
    config, state = saved.run_config, saved.loop_state
    for name in GROUPS:
        if not isinstance(config.get(name), dict):
            raise UserError(f"checkpoint {saved.path} has no configuration {name} of a training. {FIX}")
    for name in groups(TrainConfig):
        if not isinstance(config.get(name, {}), dict):
            raise UserError(f"checkpoint {saved.path} has an impossible configuration {name}. {FIX}")
    for name, value in flatten(config, TrainConfig).items():
        leaf = leaves(TrainConfig).get(name)
        if leaf is not None and not has_type(value, leaf.type):
            raise UserError(f"checkpoint {saved.path} has {name}={str(value)[:60]}, which is no {leaf.type}. {FIX}")
    scale = state.get("loss_scale")
    is_scale = isinstance(scale, dict) and scale.keys() == {entry.name for entry in fields(LossScale)}
    if not is_scale or not all(type(value) in (int, float) and value >= 0 for value in scale.values()):
        raise UserError(f"checkpoint {saved.path} has an impossible position: loss_scale={str(scale)[:60]}. {FIX}")
    for name in ("step", *state):
        if not _is_possible(name, state.get(name)):
            raise UserError(
                f"checkpoint {saved.path} has an impossible position: {name}={str(state.get(name))[:60]}. {FIX}"
            )


def _is_possible(name: str, value: Any) -> bool:
    if name in COUNTS:
        return type(value) is int and 0 <= value < 1 << 62
    if name == "bests":
        return isinstance(value, dict) and all(
            isinstance(best, list | tuple) and len(best) == 2 and type(best[0]) in (int, float) and type(best[1]) is int
            for best in value.values()
        )
    return name not in OTHERS or has_type(value, OTHERS[name])
