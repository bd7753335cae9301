"""Configurations to and from YAML files, typed and validated."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config import environment, rules
from gpt2x.config.keys import REPLACED, Leaf, changed, check_values, leaves
from gpt2x.config.locations import with_home
from gpt2x.config.mappings import is_mapping, with_text_keys
from gpt2x.config.messages import message_of
from gpt2x.config.options import SCHEMAS
from gpt2x.errors import UserError

environment.register()
VALIDATIONS: dict[str, Callable[[Any], None]] = {
    "train": rules.validate_train,
    "evaluate": rules.validate_evaluate,
    "predict": rules.validate_predict,
    "prepare": check_values,
}


def schema_node(name: str) -> Any:
    """Return the schema of entry point `name` for Hydra, in which mappings such as `settings` have any keys and values.

    `to_typed` checks them, extensions those of `settings`, the tracker those of `tags`.
    """
    node = OmegaConf.structured(SCHEMAS[name])
    for key, leaf in leaves(SCHEMAS[name]).items():
        if is_mapping(leaf):
            OmegaConf.update(node, key, leaf.default or {}, merge=False)  # Hydra can put no key into null
            OmegaConf.set_struct(OmegaConf.select(node, key), False)
    return node


def to_typed(name: str, values: Any) -> Any:
    """Return the validated dataclass of entry point `name` from a composed configuration.

    Raises:
        UserError: a missing value, an unknown key, a wrong type, a value that is not allowed, or values that do not fit
            each other.
    """
    try:
        container: Any = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else dict(values)
        container = changed(container, SCHEMAS[name], as_meant)
        typed = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), escaped(container))
    except OmegaConfBaseException as error:  # references, and `+model.foo=1`, come here
        raise UserError(message_of(error, SCHEMAS[name])) from None
    missing = sorted(OmegaConf.missing_keys(typed))
    if missing:
        raise UserError(f"{missing[0]} has no value; give {missing[0]}=VALUE (missing: {', '.join(missing)}).")
    config = OmegaConf.to_object(typed)
    VALIDATIONS[name](config)
    return config


def as_meant(leaf: Leaf, value: Any) -> Any:
    """Return a value of a composed configuration with what `~` stands for in paths, and the keys of mappings as texts.

    Raises:
        UserError: an empty path, a `~user` that names nobody, or a key of a mapping that is no text.
    """
    if leaf.facts.is_path:
        return with_home(value, leaf.name)
    return with_text_keys(leaf, value) if is_mapping(leaf) else value


def to_yaml(config: Any) -> str:
    """Return a typed configuration as YAML, which `load_config` reads."""
    return str(OmegaConf.to_yaml(OmegaConf.create(escaped(asdict(config)))))


def escaped(value: Any) -> Any:
    """Return values whose texts OmegaConf reads as they are: ${ in them begins no reference."""
    if isinstance(value, dict):
        return {key: escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escaped(one) for one in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def load_config(name: str, path: Path) -> Any:
    """Return the validated configuration that `to_yaml` returned, also that of an older version.

    Keys that this version has replaced are left out.

    Raises:
        UserError: as `to_typed`.
    """
    values = OmegaConf.load(path)
    for key in REPLACED:
        parent, _, last = key.rpartition(".")
        if (group := OmegaConf.select(values, parent)) is not None:
            group.pop(last, None)
    return to_typed(name, values)
