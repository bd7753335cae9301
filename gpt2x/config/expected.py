"""What a key's value must be, in words, and what was probably meant."""

from __future__ import annotations

import re
from math import isfinite

from gpt2x.config.keys import leaves
from gpt2x.extensions import TYPES


def type_of(key: str, root: type) -> str:
    """Return a key's type without None, such as `float`; '' if it is no key of `root`."""
    leaf = leaves(root).get(key)
    return leaf.type.removesuffix(" | None") if leaf else ""


def must_be(key: str, root: type, value: str) -> str:
    """Return 'must be a whole number, at least 1; …' for a value that is not; '' if it is no key of `root`."""
    leaf = leaves(root).get(key)
    if leaf is None:
        return ""
    kind, facts = type_of(key, root), leaf.facts
    names = facts.names()
    parts = [TYPES.get(kind, kind) + (f" ({facts.unit})" if facts.unit else "")]
    parts += [facts.bounds()] if facts.bounds() else []
    parts += [f"{'each ' if kind.startswith('list') else ''}one of {', '.join(names)}"] if names else []
    must = f"must be {', '.join(parts)}"
    if value == "null":
        return f"{must}; it cannot be null"
    meant = _number(kind, value)
    if meant:
        return f"{must}; type {key}={meant}"
    return f"{must}; null means {facts.null}" if facts.null else must


def _number(kind: str, value: str) -> str:
    """The number of the right type in a value such as 16GB or 1e3, or ''."""
    if kind not in ("int", "float"):
        return ""
    number = re.fullmatch(r"\s*([-+]?[\d_]*\.?\d+(?:[eE][-+]?\d+)?)\s*[A-Za-z%/]*", value)
    if not number:
        return ""
    text = number.group(1)
    if kind == "float":
        return text if text != value else ""
    count = float(text)
    return str(int(count)) if isfinite(count) and count == int(count) and str(int(count)) != value else ""
