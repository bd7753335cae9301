"""A configuration as the parameters of an MLflow run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpt2x.config.keys import spell

MAX_KEY_CHARS = 250  # MLflow's limit
MAX_VALUE_CHARS = 500  # limit of MLflow servers before 2.10; later servers accept 6000


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
            flat[_cut(clean_key(prefix), MAX_KEY_CHARS)] = _cut(spell(value), MAX_VALUE_CHARS)

    for key, value in params.items():
        visit(str(key), value)
    return flat


def clean_key(key: str) -> str:
    """Return `key` with `_` for each character that MLflow rejects."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
