"""A configuration, metrics and tags within the limits of MLflow."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from itertools import count
from typing import Any

from gpt2x.config.keys import spell
from gpt2x.errors import UserError
from gpt2x.runtime.json_text import well_formed

MAX_KEY_CHARS = 250  # MLflow's limit
MAX_VALUE_CHARS = 500  # limit of MLflow servers before 2.10; later servers accept 6000
MAX_TAG_CHARS = 5000  # limit of MLflow servers before 3; later servers accept 8000
RESERVED = "mlflow."  # tags that mean something to MLflow's pages


def shortened_for_mlflow(params: Mapping[str, Any]) -> dict[str, str]:
    """Return a nested configuration as dotted keys and short texts, within MLflow's limits.

    Values are spelled as in YAML and on the command line (`null`, `true`, `0.0001`, `["a", "b"]`). A text that is too
    long is cut and ends in an ellipsis; `config.yaml` has the whole configuration.
    """
    flat: dict[str, str] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            flat[distinct_key(clean_key(prefix), flat)] = _cut(spell(value), MAX_VALUE_CHARS)

    for key, value in params.items():
        visit(str(key), value)
    return flat


def tags_for_mlflow(tags: Mapping[str, str]) -> dict[str, str]:
    """Return tags with keys that MLflow accepts; a value that is too long is cut and ends in an ellipsis."""
    cleaned: dict[str, str] = {}
    for key, value in tags.items():
        cleaned[distinct_key(clean_key(key), cleaned)] = _cut(value, MAX_TAG_CHARS)
    return cleaned


def checked_tags(tags: Mapping[str, Any]) -> dict[str, str]:
    """Return `tracker.tags` as texts, without those that are null.

    Raises:
        UserError: MLflow does not accept a key or a value.
    """
    checked = {}
    for key, value in tags.items():
        name = str(key)
        if name.startswith(RESERVED):
            raise UserError(
                f"tracker.tags.{name} is reserved by MLflow; choose a different key, or give tracker.description=TEXT."
            )
        if clean_key(name) != name:
            raise UserError(
                f"tracker.tags: MLflow does not accept the key {name[:80]!r}; it may have letters, digits, _ - . : / "
                f"and spaces, no empty part between slashes, and at most {MAX_KEY_CHARS} characters."
            )
        if isinstance(value, (Mapping, list, tuple)):
            raise UserError(f"tracker.tags.{name}={spell(value)} is not a single value; give a text or a number.")
        if len(text := value if isinstance(value, str) else spell(value)) > MAX_TAG_CHARS:
            raise UserError(
                f"tracker.tags.{name} has {len(text)} characters, and MLflow accepts {MAX_TAG_CHARS}; shorten it, or "
                "write it to tracker.description."
            )
        if value is not None:
            checked[name] = text
    return checked


def clean_key(key: str) -> str:
    """Return `key` as a name that MLflow accepts for a metric, a parameter or a tag.

    A character that MLflow rejects becomes `_`, and so does a part between slashes that is empty or means a folder, and
    the first of two points at the beginning.
    """
    parts = re.sub(r"[^\w\-. :/]", "_", key).split("/")
    parts = [part if part.strip(".") else "_" * max(len(part), 1) for part in parts]
    return _cut(re.sub(r"^\.(?=\.)", "_", "/".join(parts)), MAX_KEY_CHARS, "_")


def distinct_key(name: str, others: Container[str]) -> str:
    """Return a name within MLflow's limit that is not one of the others: the name, or the name and a number."""
    numbered = (f"{name[: MAX_KEY_CHARS - 10]} {number}" for number in count(2))
    return name if name not in others else next(each for each in numbered if each not in others)


def _cut(text: str, length: int, end: str = "…") -> str:
    text = well_formed(text)  # no store takes half of a surrogate pair
    return text if len(text) <= length else text[: length - 1] + end
