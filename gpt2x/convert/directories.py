"""Directories of weights: their JSON files, and outputs that must be empty."""

from __future__ import annotations

from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.runtime.json_text import read_json

__all__ = ["read_json", "require_empty"]


def require_empty(output: Path) -> None:
    """Check that a command can write to `output` without overwriting anything.

    Raises:
        UserError: `output` is a file, or a directory that is not empty.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not an empty directory. Nothing was written; give a new one.")
