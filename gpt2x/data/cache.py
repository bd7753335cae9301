"""Directories that are built once, with facts about them (imports no mindspore)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2x.runtime.files import new_directory

META = "meta.json"


def read_meta(directory: Path) -> dict[str, Any] | None:
    """The facts that were stored with a complete directory; None when it is missing or its files changed size."""
    try:
        meta = json.loads((directory / META).read_text(encoding="utf-8"))
        sizes = {name: (directory / name).stat().st_size for name in meta["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta["facts"] if sizes == meta["files"] else None


def build_once(directory: Path, build: Callable[[Path], dict[str, Any]], *, key: str = "paths.cache") -> dict[str, Any]:
    """The facts of `directory`, which `build` fills when it is not there yet.

    Two processes may build at once: the first that is done wins, the other's work is dropped. A damaged directory is
    built anew.

    Args:
        directory: The complete directory, afterwards.
        build: Fills the directory it is given, and returns facts for `meta.json`.
        key: The configuration key that the place comes from, for messages.

    Raises:
        UserError: The place cannot be written.
    """
    facts = read_meta(directory)
    if facts is not None:
        return facts
    with new_directory(directory, key=key, keep=lambda: read_meta(directory) is not None) as temporary:
        facts = build(temporary)
        files = {str(p.relative_to(temporary)): p.stat().st_size for p in sorted(temporary.rglob("*")) if p.is_file()}
        (temporary / META).write_text(json.dumps({"facts": facts, "files": files}, indent=2) + "\n", encoding="utf-8")
    return facts
