"""Directories of weights: their JSON files, and outputs that must be empty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError


def require_empty(output: Path) -> None:
    """Check that a command can write to `output` without overwriting anything.

    Raises:
        UserError: `output` is a file, or a directory that is not empty.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not an empty directory. Nothing was written; give a new one.")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        UserError: the file cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object. Copy or download it again.")
    return content
