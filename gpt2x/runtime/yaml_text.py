"""YAML that users bring, within limits: an alias counts as often as it occurs, since a walk over the value does so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gpt2x.errors import UserError
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import decoded_text

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml; Python's parser takes a time that grows quadratically
PLAIN_CHARS = 4096  # of an unquoted word; longer ones could be numbers, whose conversion takes quadratic time


class _LimitError(ValueError):
    """A text exceeds a limit."""


def read_yaml(path: Path, fix: str) -> Any:
    """Return the value of a YAML file.

    Args:
        path: the file.
        fix: what to do; ends the message.

    Raises:
        UserError: it cannot be read, is not YAML, makes objects of Python, or exceeds a limit.
    """
    text = decoded_text(limits.read_bytes(path, limits.YAML_BYTES, fix), path, fix)
    try:
        _check(text)
        return yaml.load(text, Loader=LOADER)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read as YAML ({reason[:300]}). {fix}") from None


def _check(text: str) -> None:
    """Check depth and size before values are made.

    Raises:
        _LimitError: the text exceeds a limit, or an alias stands within what it names.
    """
    sizes: dict[str, int] = {}  # of what an anchor names, in nodes
    open_nodes: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > limits.DEPTH:
                raise _LimitError(f"lists and objects are nested more than {limits.DEPTH} deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if event.style is None and len(event.value) > PLAIN_CHARS and not any(map(str.isspace, event.value)):
                raise _LimitError(f"a word without quotes has {len(event.value):,} characters")
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise _LimitError(f"the alias *{event.anchor} names nothing that has ended before it")
            anchor, size = None, sizes[event.anchor]
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if open_nodes:
            name, before = open_nodes[-1]
            open_nodes[-1] = (name, before + size)
            size += before
        if size > limits.YAML_NODES:
            raise _LimitError(f"it has more than {limits.YAML_NODES:,} values, aliases counted as often as they occur")
