"""The hash of a file, and whether an output directory can be written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from gpt2x.errors import UserError

CHUNK_BYTES = 1 << 22


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, which is read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_writable(directory: Path, key: str = "paths.outputs") -> None:
    """Create `directory`, which `key` names, and write a file in it: a run fails now and not at its first checkpoint.

    Raises:
        UserError: the directory cannot be created or written.
    """
    probe = directory / f".writable-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output directory {directory} is not writable ({error.strerror or error}). "
            f"Give a different one with {key}=DIRECTORY, or change its permissions."
        ) from error
