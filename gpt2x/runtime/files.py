"""Directories that appear complete or not at all: written beside the target, synced, renamed (POSIX rename(2))."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from gpt2x.errors import UserError


@contextmanager
def new_directory(target: Path, *, key: str = "", keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Yields an empty sibling of `target`, which takes its place once the block has ended without a fault.

    Every file and directory is synced before the rename. A directory with files that is already there is moved aside
    first and deleted last, so that at every moment one complete copy exists.

    Args:
        target: The complete directory, afterwards.
        key: The configuration key that the place comes from, for messages.
        keep: Asked where `target` holds files: whether they stay and the new ones are dropped.

    Raises:
        UserError: The system refused to write (full disk, permission); nothing of `target` has changed.
    """
    target, mark = target.absolute(), uuid4().hex[:8]
    temporary, aside = (target.with_name(f".{target.name}.{use}-{mark}") for use in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                sync(path)
        try:
            temporary.rename(target)
        except OSError:  # a directory with files is there
            if not target.is_dir():
                raise
            if not keep():
                target.rename(aside)
                temporary.rename(target)
        sync(target.parent)
    except OSError as error:
        raise UserError(
            f"{key and f'{key}: '}cannot write {target} ({error.strerror or error}): what was there is unchanged; "
            "free space or give another directory"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if aside.exists() and not target.exists():
            aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync of a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
