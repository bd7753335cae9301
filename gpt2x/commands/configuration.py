"""A composed configuration, typed and validated, with the checks that its task owns (Hydra is not involved)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2x.commands.loaded import NotOpenedError, with_any_positions, with_loaded
from gpt2x.config import TrainConfig
from gpt2x.config.files import load_config, to_typed, to_yaml
from gpt2x.config.rules import is_plan
from gpt2x.errors import UserError
from gpt2x.planner.choose import settle
from gpt2x.runtime.files import write_durably
from gpt2x.tasks.registry import check_task


def typed_config(name: str, values: Any, overrides: Sequence[str] | None = None) -> Any:
    """Return the validated dataclass of entry point `name`.

    Args:
        name: of the entry point.
        values: a composed configuration, or one that a run has resolved.
        overrides: the arguments that were composed, with which a training run takes from `load=` what was not typed;
            None if the values are resolved.

    Raises:
        UserError: for anything that is wrong with a key or a value.
    """
    if name != "train" or overrides is None:
        return checked(to_typed(name, values))
    try:
        return checked(to_typed(name, with_loaded(values, overrides)))
    except NotOpenedError:
        config = checked(to_typed(name, with_any_positions(values)))  # mistakes that need no weights are said first
        if is_plan(config):
            raise
        return config  # a run says it when it opens them


def save_config(config: Any, path: Path) -> None:
    """Write a typed configuration as YAML, completely or not at all; create the directories above it.

    Raises:
        UserError: the disk rejects it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, to_yaml(config).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}). Free space, or give a different directory."
        ) from error


def read_config(name: str, path: Path) -> Any:
    """Return the configuration that `save_config` wrote, validated.

    Raises:
        UserError: as `typed_config`.
    """
    return checked(load_config(name, path))


def checked(config: Any) -> Any:
    """Return `config` after its task has checked it, with what its layout and its device decide."""
    if isinstance(config, TrainConfig):
        check_task(config)
        return settle(config)
    return config
