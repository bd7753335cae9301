"""What a checkpoint has to hold so that a run can continue from it: a configuration and a position of possible types.

The manifest's hash tells damage, and not who wrote it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from gpt2x.checkpoint import Checkpoint
from gpt2x.config import TrainConfig
from gpt2x.config.keys import flatten, groups, has_type, leaves
from gpt2x.errors import UserError
from gpt2x.optim.loss_scale import LossScale
from gpt2x.train.records import KEY as RECORDS

State = Mapping[str, Any]
GROUPS = ("task", "model", "trainer", "hardware", "optimizer", "schedule", "dataset", "tokenizer", "parallel")
REQUIRED = ("step", "loss_scale")  # in every version
BREAKABLE = ("Evaluate", "DrawSamples")  # the hooks that a signal may break off (gpt2x.train.hooks.CutShortError)
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
    for name, is_possible in POSITION.items():
        if (name in state or name in REQUIRED) and not is_possible(state.get(name), state):
            raise UserError(
                f"checkpoint {saved.path} has an impossible position: {name}={str(state.get(name))[:60]}. {FIX}"
            )


def _is_count(value: Any, at_least: int = 0) -> bool:
    return type(value) is int and at_least <= value < 1 << 62


def _is_number(value: Any) -> bool:
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _is_step(value: Any, state: State) -> bool:
    """Return whether it is one of the steps up to the checkpoint's."""
    return _is_count(value, 1) and value <= state["step"]


def _is_count_of_steps(value: Any, state: State) -> bool:
    return _is_count(value) and value <= state["step"]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2


def _are_recent(value: Any, state: State) -> bool:
    return isinstance(value, list) and all(_is_pair(one) and all(map(_is_finite, one)) for one in value)


def _are_bests(value: Any, state: State) -> bool:
    return isinstance(value, dict) and all(
        _is_pair(best) and _is_finite(best[0]) and _is_step(best[1], state) for best in value.values()
    )


def _is_loss_scale(value: Any, state: State) -> bool:
    if not isinstance(value, dict) or value.keys() != {entry.name for entry in fields(LossScale)}:
        return False
    is_scale = (
        _is_finite(value["scale"]) and value["scale"] > 0 and _is_finite(value["factor"]) and value["factor"] >= 1
    )
    return is_scale and _is_count(value["window"], 1) and _is_count(value["num_finite"])


def _are_open_metrics(value: Any, state: State) -> bool:
    """Return whether they are there if and only if a hook is open; any number may be among them."""
    is_right = isinstance(value, dict) and all(_is_number(number) for number in value.values())
    return is_right and bool(value) == bool(state.get("open_hook"))


def _are_records(value: Any, state: State) -> bool:
    return isinstance(value, dict) and all(
        isinstance(mark, dict) and _is_count(mark.get("bytes")) and isinstance(mark.get("sha256"), str)
        for mark in value.values()
    )


# of each field of a position; the step comes first, because others are compared with it
POSITION: dict[str, Callable[[Any, State], bool]] = {
    "step": lambda value, _: _is_count(value),
    "num_updates": _is_count_of_steps,
    "skipped_in_a_row": _is_count_of_steps,
    "exploded_in_a_row": _is_count_of_steps,
    "recent": _are_recent,
    "epoch": lambda value, _: _is_count(value),
    "batch": lambda value, _: _is_count(value),
    "units_seen": lambda value, _: _is_count(value),
    "loss_scale": _is_loss_scale,
    "best_step": lambda value, state: value is None or _is_step(value, state),
    "best_value": lambda value, state: _is_finite(value) if state.get("best_step") else value is None,
    "bests": _are_bests,
    "evaluations_without_gain": _is_count_of_steps,
    "data_sha256": lambda value, _: isinstance(value, str),
    "base_path": lambda value, _: value is None or isinstance(value, str),
    "base_fingerprint": lambda value, _: isinstance(value, str),
    "open_hook": lambda value, state: value == "" or (value in BREAKABLE and state["step"] > 0),
    "open_metrics": _are_open_metrics,
    RECORDS: _are_records,
}
