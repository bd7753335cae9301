"""Configurations to and from YAML files, typed and validated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config import rules as checks
from gpt2x.config import schema
from gpt2x.config.messages import explain
from gpt2x.errors import UserError

SCHEMAS: dict[str, type] = {
    "train": schema.TrainConfig,
    "evaluate": schema.EvaluateConfig,
    "predict": schema.PredictConfig,
    "prepare": schema.PrepareConfig,
}
VALIDATIONS: dict[str, Callable[[Any], None]] = {
    "train": checks.validate_train,
    "evaluate": checks.validate_evaluate,
    "predict": checks.validate_predict,
    "prepare": lambda config: None,
}


def to_typed(name: str, values: Any) -> Any:
    """The dataclass of entry point `name` from a composed config, validated.

    Raises:
        UserError: for a missing value, an unknown key, a wrong type, or what the cross-field checks refuse.
    """
    container = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else dict(values)
    try:
        typed = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), container)
    except OmegaConfBaseException as error:  # `+model.foo=1` slips past composition, not past this
        raise UserError(explain(error, SCHEMAS[name])) from None
    missing = sorted(OmegaConf.missing_keys(typed))
    if missing:
        raise UserError(f"{missing[0]} has no value: give {missing[0]}=… (missing: {', '.join(missing)})")
    config = OmegaConf.to_object(typed)
    VALIDATIONS[name](config)
    return config


def save_config(config: Any, path: Path) -> None:
    """Write a typed configuration, resolved, as YAML; directories are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def load_config(name: str, path: Path) -> Any:
    """Read what `save_config` wrote."""
    return to_typed(name, OmegaConf.load(path))
