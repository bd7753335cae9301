"""Configurations to and from YAML files, typed and validated."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import yaml
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
MISSING = "???"  # of a key that has no value, in OmegaConf
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
        is_composed = OmegaConf.is_config(values)  # only then a key may lack its value
        container = changed(container, SCHEMAS[name], lambda _, v: v if is_composed and v == MISSING else literal(v))
        typed = OmegaConf.merge(OmegaConf.structured(SCHEMAS[name]), escaped(container))
    except OmegaConfBaseException as error:  # references, and `+model.foo=1`, come here
        raise UserError(message_of(error, SCHEMAS[name])) from None
    missing = sorted(OmegaConf.missing_keys(typed))
    if missing:
        raise UserError(f"{missing[0]} has no value; give {missing[0]}=VALUE (missing: {', '.join(missing)}).")
    config: Any = restored(OmegaConf.to_object(typed))
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
    return str(yaml.dump(escaped(literal(asdict(config))), Dumper=_Dumper, allow_unicode=True, sort_keys=False))


class _Dumper(yaml.SafeDumper):
    """Writes texts so that OmegaConf reads texts again: quoted if they look like numbers, escaped if a YAML reader
    would change their ends of lines.
    """

    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        is_number = re.fullmatch(r"[-+]?[\d_.]+([eE][-+]?\d+)?", text, re.ASCII)
        style = '"' if re.search("[\x85\u2028\u2029]", text) else "'" if is_number else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style)

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: a list that is there twice is written twice."""
        return True


_Dumper.add_representer(str, _Dumper.represent_text)


def escaped(value: Any) -> Any:
    """Return values whose texts OmegaConf reads as they are: ${ in them begins no reference."""
    return _with_texts(value, lambda text: re.sub(r"(\\*)\$\{", r"\1\1\\${", text))


def literal(value: Any) -> Any:
    """Return values in which OmegaConf misses none: a text ??? gets a backslash, and one that has some, another."""
    return _with_texts(value, lambda text: f"\\{text}" if re.fullmatch(r"\\*\?{3}", text) else text)


def restored(value: Any) -> Any:
    """Return the values, or the dataclass with them, from which `literal` was made."""
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: restored(getattr(value, one.name)) for one in fields(value)})
    return _with_texts(value, lambda text: text[1:] if re.fullmatch(r"\\+\?{3}", text) else text)


def _with_texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _with_texts(one, change) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_texts(one, change) for one in value]
    return change(value) if isinstance(value, str) else value


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
    return to_typed(name, restored(OmegaConf.to_container(values, resolve=True)))
