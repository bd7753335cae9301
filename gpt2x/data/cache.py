"""Directories that appear complete or not at all (imports no mindspore)."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError

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

    `build` writes into a fresh temporary directory beside it, which is flushed to disk and renamed when all is done.
    Two processes may build at once: the first rename wins, the other's work is dropped.

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
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    except OSError as error:
        raise UserError(
            f"{key}: {directory.parent} cannot be written ({error.strerror}). Give another place."
        ) from error
    try:
        facts = build(temporary)
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        meta = {"facts": facts, "files": {str(p.relative_to(temporary)): p.stat().st_size for p in files}}
        (temporary / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        os.chmod(temporary, 0o755)  # mkdtemp's is 0700
        for path in (*files, temporary / META, temporary):
            _flush(path)
        _put_in_place(temporary, directory)
        _flush(directory.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _put_in_place(temporary: Path, directory: Path) -> None:
    try:
        os.rename(temporary, directory)  # fails when a directory with files is there
    except OSError:
        if read_meta(directory) is not None:
            return  # another process was first
        shutil.rmtree(directory)  # damaged
        os.rename(temporary, directory)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
