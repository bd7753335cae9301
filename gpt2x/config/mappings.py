"""Keys whose values are mappings, such as `dataset.label_names`: their keys are texts, however these are spelled.

Hydra's command line has no form for some keys of a mapping: quoted ones, accents, `1_0` that is no number. Such a key
travels through Hydra as its UTF-8 bytes in hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gpt2x.config.keys import Leaf
from gpt2x.errors import UserError

HEXADECIMAL = "_x"  # how such a key begins on its way through Hydra
WORDS = ("null", "true", "false", "inf", "nan")  # which Hydra reads as something else


def is_mapping(leaf: Leaf) -> bool:
    """Return whether the values of a key are mappings."""
    return leaf.type.startswith("dict")


def is_flat(leaf: Leaf) -> bool:
    """Return whether the values of a mapping are texts, so that a dot in one of its keys begins no inner mapping."""
    return leaf.type.startswith("dict[str, str]") or leaf.name.endswith(".tags")


def through_hydra(key: str, is_dotted: bool) -> str:
    """Return a key of a mapping as Hydra's grammar can read it.

    Args:
        key: as it is meant.
        is_dotted: whether it is the last part of a dotted key, where digits stay a text, or stands between braces.
    """
    is_name = re.fullmatch(r"[A-Za-z_][\w-]*", key, re.ASCII) and key.lower() not in WORDS
    is_number = is_dotted and re.fullmatch(r"0|[1-9]\d*", key, re.ASCII)
    if (is_name or is_number) and not key.startswith(HEXADECIMAL):
        return key
    return HEXADECIMAL + key.encode("utf-8", "surrogatepass").hex()


def with_text_keys(leaf: Leaf, value: Any) -> Any:
    """Return the value of a key for mappings, with keys as they were typed; whole numbers become their digits.

    An empty mapping is null if the key is null by default: Hydra cannot merge a mapping into null.

    Raises:
        UserError: a key in a file of options is neither a text nor a whole number.
    """
    if not isinstance(value, Mapping):
        return value
    return {_text(leaf, key): one for key, one in value.items()} or leaf.default


def _text(leaf: Leaf, key: Any) -> str:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise UserError(f"{leaf.name}: its key {key} is no text; put the key in quotes, as it is spelled in the data.")
    return as_typed(str(key))


def as_typed(key: str) -> str:
    """Return a key that may come from `through_hydra` as it is meant."""
    if re.fullmatch(HEXADECIMAL + "([0-9a-f]{2})*", key):
        return bytes.fromhex(key.removeprefix(HEXADECIMAL)).decode("utf-8", "surrogatepass")
    return key
