"""Directories that appear complete or not at all: written beside the target, synced, renamed (POSIX rename(2))."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gpt2x.errors import UserError

CHUNK_BYTES = 1 << 22


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in pieces of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_writable(directory: Path) -> None:
    """Makes `directory` and writes a file in it, so that a run fails now and not at its first checkpoint.

    Raises:
        UserError: It cannot be made, or not be written.
    """
    probe = directory / f".writable-{os.getpid()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output directory {directory} is not writable ({error.strerror or error}): "
            f"give another one (paths.outputs=...), or its permission"
        ) from error


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yields an empty sibling of `target`, which takes its place once the block has ended without a fault.

    Every file and directory is synced before the rename. A directory that is already there is moved aside first and
    deleted last, so that at every moment one complete copy exists.

    Raises:
        UserError: The system refused to write (full disk, permission); nothing of `target` has changed.
    """
    target = target.absolute()
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    aside = target.with_name(f".{target.name}.old-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in (temporary, aside):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                sync(Path(folder, name))
            sync(Path(folder))
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
        sync(target.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(
            f"cannot write {target} ({reason}): what was there is unchanged; free space or give another directory"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not target.exists():
            aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)
