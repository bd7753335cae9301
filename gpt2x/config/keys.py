"""The dotted keys of a configuration dataclass."""

from __future__ import annotations

from dataclasses import fields, is_dataclass

from gpt2x.config import schema


def all_keys(root: type, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration dataclass."""
    keys = []
    for entry in fields(root):
        keys.append(prefix + entry.name)
        nested = getattr(schema, str(entry.type), None)
        if isinstance(nested, type) and is_dataclass(nested):
            keys += all_keys(nested, f"{prefix}{entry.name}.")
    return keys
