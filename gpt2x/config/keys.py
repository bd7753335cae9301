"""The dotted keys of a configuration, and the checks of single values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from math import isfinite
from typing import Any, TypeVar, get_type_hints

from omegaconf import MISSING

from gpt2x.config.metadata import Key, key_of
from gpt2x.errors import UserError, require_choice

T = TypeVar("T")
REPLACED = {
    "trainer.max_eval_batches": "trainer.max_eval_batches counted micro batches, so that val/loss depended on the "
    "micro batch and the layout; give trainer.max_eval_rows=N, which counts rows (the old number times "
    "trainer.micro_batch_size are as many).",
}
"""Keys of older versions, each with the answer to a user who types it. Stored configurations may have them."""


@dataclass(frozen=True)
class Leaf:
    """A key that is not a group.

    Attributes:
        name: dotted, such as `model.num_layers`.
        type: as the schema spells it, such as `int | None`.
        default: `omegaconf.MISSING` if an option must give the value.
        facts: what the schema records.
    """

    name: str
    type: str
    default: Any
    facts: Key


@cache
def leaves(root: type) -> dict[str, Leaf]:
    """Return every key of a configuration dataclass that is not a group, in the order of the schema."""
    return {leaf.name: leaf for leaf in _leaves(root, "")}


def _leaves(root: type, prefix: str) -> Iterator[Leaf]:
    for entry, nested in _entries(root):
        name = prefix + entry.name
        if nested:
            yield from _leaves(nested, f"{name}.")
        else:
            yield Leaf(name, str(entry.type), _default(entry), key_of(entry))


def groups(root: type) -> dict[str, type]:
    """Return the groups of a configuration dataclass by name."""
    return {entry.name: nested for entry, nested in _entries(root) if nested}


def all_keys(root: type) -> list[str]:
    """Return every dotted key of a configuration dataclass, groups included."""
    return [*groups(root), *leaves(root)]


def defaults(root: type) -> dict[str, Any]:
    """Return the default of every key that has one in the schema."""
    return {name: leaf.default for name, leaf in leaves(root).items() if leaf.default != MISSING}


def flatten(values: Mapping[str, Any], root: type) -> dict[str, Any]:
    """Return nested values of the configuration `root` by dotted key, whole.

    A value that is itself a mapping, such as `schedule.settings`, is one value.
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = groups(root).get(name)
        if nested and isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": one for inner, one in flatten(value, nested).items()}
        else:
            flat[name] = value
    return flat


def changed(values: Mapping[str, Any], root: type, change: Callable[[Leaf, Any], Any]) -> dict[str, Any]:
    """Return nested values of the configuration `root` after `change` of each; keys that it lacks stay as they are."""

    def inner(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        result = {}
        for name, value in values.items():
            key = f"{prefix}{name}"
            leaf = leaves(root).get(key)
            if leaf:
                result[name] = change(leaf, value)
            else:
                result[name] = inner(value, f"{key}.") if isinstance(value, Mapping) else value
        return result

    return inner(values, "")


def spell(value: Any) -> str:
    """Return a value as YAML and the command line spell it: `null`, `true`, `0.0001`, `["a", "b"]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def check_values(config: Any, prefix: str = "") -> None:
    """Check every value by itself: numbers against their bounds, words against the choices.

    Args:
        config: the dataclass of an entry point or of a group.
        prefix: of its keys, such as `generation.`.

    Raises:
        UserError: with key, value and what is allowed.
    """
    for entry, nested in _entries(type(config)):
        value, name = getattr(config, entry.name), prefix + entry.name
        if nested:
            check_values(value, f"{name}.")
        else:
            for one in value if isinstance(value, list) else [value]:
                if one is not None:
                    _check(name, one, key_of(entry))


def check_plain(values: Mapping[str, Any], cls: type[T], prefix: str, where: str) -> T:
    """Return the dataclass of a group that has no groups, from plain data that somebody else wrote.

    Args:
        values: by field; those that are no field are left out, and a field with a default may be missing.
        cls: the dataclass.
        prefix: of its keys, such as `model.`.
        where: the file, which begins messages.

    Raises:
        UserError: a value is missing, has a different type, or is not allowed.
    """
    config = typed_plain(values, cls, prefix, where)
    try:
        check_values(config, prefix)
    except UserError as error:
        raise UserError(f"{where} has {error}") from None
    return config


def typed_plain(values: Mapping[str, Any], cls: type[T], prefix: str, where: str) -> T:
    """Return the dataclass of `check_plain`, of whose values only the types have been checked.

    Raises:
        UserError: a value is missing, or has a different type.
    """
    stated = {}
    for entry in fields(cls):  # type: ignore[arg-type]
        if entry.name not in values:
            if _default(entry) == MISSING:
                raise UserError(f"{where} has no {prefix}{entry.name}. Use a different one.")
            continue
        value = stated[entry.name] = values[entry.name]
        if not has_type(value, str(entry.type)):
            raise UserError(
                f"{where} has {prefix}{entry.name}={spell(value)[:60]}, which is no {entry.type}. Use a different one."
            )
    return cls(**stated)


def has_type(value: Any, annotation: str) -> bool:
    """Return whether plain data has the type of a field, as the schema spells it."""
    kind = annotation.removesuffix(" | None")
    if value is None:
        return kind != annotation
    if kind.startswith("list["):
        return isinstance(value, list) and all(has_type(one, kind[len("list[") : -1]) for one in value)
    if kind == "float":
        return type(value) in (int, float)
    return type(value).__name__ == kind.partition("[")[0]


def _check(name: str, value: Any, facts: Key) -> None:
    null = f"; null means {facts.null}" if facts.null else ""
    if isinstance(value, float) and not isfinite(value):
        raise UserError(f"{name}={spell(value)} must be a finite number{null}.")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{name}={spell(value)[:40]} has more than 64 bits; give a number below {1 << 63}{null}.")
    if isinstance(value, int | float) and not facts.is_in_bounds(value):
        raise UserError(f"{name}={spell(value)} must be {facts.bounds()}{null}.")
    words = facts.names()
    if words:
        # Hydra passes `plan=true` as "True", since the key is a string
        require_choice(name, value.lower() if value in ("True", "False") else value, words)


def _entries(root: type) -> list[tuple[Field, type | None]]:
    """The fields of a configuration dataclass, each with its dataclass if it is a group."""
    types = _types(root)
    return [(entry, types[entry.name] if is_dataclass(types[entry.name]) else None) for entry in fields(root)]


@cache
def _types(root: type) -> dict[str, Any]:
    return get_type_hints(root)


def _default(entry: Field) -> Any:
    return entry.default if entry.default_factory is NO_DEFAULT else entry.default_factory()
