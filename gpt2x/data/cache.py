"""Directories that are built once, with facts about them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2x.runtime.files import new_directory

META = "meta.json"


def digest_of(facts: list[Any]) -> str:
    """Return the sha256 of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def code_hash(definition: Callable[..., Any]) -> str:
    """Return the sha256 of the file that defines a class or function.

    It belongs in the cache keys of what an extension makes, so that an extension that is being written never gets what
    an earlier version of it made.
    """
    return hashlib.sha256(Path(inspect.getfile(definition)).read_bytes()).hexdigest()


def read_meta(directory: Path) -> dict[str, Any] | None:
    """Return the facts stored with a complete directory; None if it is missing or its files changed size."""
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in meta["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta["facts"] if sizes == meta["files"] else None


def build_once(directory: Path, build: Callable[[Path], dict[str, Any]], *, key: str = "paths.cache") -> dict[str, Any]:
    """Return the facts of `directory`, and let `build` fill it first if it is not there yet.

    Two processes may build at once: the first to finish wins, the other's work is dropped. A damaged directory is
    built again.

    Args:
        directory: The complete directory, afterwards.
        build: Fills the directory that it gets, and returns facts for `meta.json`.
        key: The configuration key that the location comes from, for messages.

    Raises:
        UserError: The location cannot be written.
    """
    facts = read_meta(directory)
    if facts is not None:
        return facts
    with new_directory(directory, key=key, keep=lambda: read_meta(directory) is not None) as temporary:
        facts = build(temporary)
        files = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        (temporary / META).write_text(json.dumps({"facts": facts, "files": files}, indent=2) + "\n", encoding="utf-8")
    return facts
