"""Directories that appear complete or not at all: written beside the target, synced, renamed (POSIX rename(2))."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from gpt2x.errors import UserError

Agree = Callable[[bool], bool]  # collective: whether every process of the group says True; also a barrier


@contextmanager
def together(agree: Agree, target: Path) -> Iterator[None]:
    """Ends in a fault on every process where the block did on one, so that no process waits for another.

    Args:
        agree: Called once, whatever happens in the block.
        target: What is written, for the message.

    Raises:
        UserError: Another process failed.
    """
    try:
        yield
    except BaseException:
        agree(False)
        raise
    if not agree(True):
        raise UserError(
            f"cannot write {target}: another process failed, its message says why; what was there is unchanged"
        )


@contextmanager
def new_directory(
    target: Path,
    *,
    key: str = "",
    keep: Callable[[], bool] = lambda: False,
    rank: int = 0,
    agree: Agree | None = None,
) -> Iterator[Path]:
    """Yields an empty sibling of `target`, which takes its place once the block has ended without a fault.

    Every file and directory is synced before the rename. A directory with files that is already there is moved aside
    first and deleted last, so that at every moment one complete copy exists.

    Args:
        target: The complete directory, afterwards.
        key: The configuration key that the place comes from, for messages.
        keep: Asked where `target` holds files: whether they stay and the new ones are dropped.
        rank: Where several processes fill the directory: 0 makes, syncs and renames it.
        agree: Of these processes. Where any of them fails, all do.

    Raises:
        UserError: The system refused to write (full disk, permission); nothing of `target` has changed.
    """
    target = target.absolute()
    mark = uuid4().hex[:8] if agree is None else "shared"  # a name that all processes know
    agree = agree or (lambda is_well: is_well)
    temporary, aside = (target.with_name(f".{target.name}.{use}-{mark}") for use in ("tmp", "old"))
    try:
        with together(agree, target):
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # of processes that were killed
                _settle(aside, target)
                temporary.mkdir(parents=True)
        with together(agree, target):
            yield temporary
            if rank == 0:
                _put_in_place(temporary, target, aside, keep)
    except OSError as error:
        raise UserError(
            f"{key and f'{key}: '}cannot write {target} ({error.strerror or error}): what was there is unchanged; "
            "free space or give another directory"
        ) from error
    finally:
        if rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            _settle(aside, target)


def _put_in_place(temporary: Path, target: Path, aside: Path, keep: Callable[[], bool]) -> None:
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


def _settle(aside: Path, target: Path) -> None:
    """What was moved aside comes back, or goes where its successor is there."""
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


def remove_empty(directory: Path) -> None:
    """Remove an empty run directory and up to three empty parents, but never one that holds the working directory."""
    for path in (directory, *directory.parents[:3]):
        if path == Path.cwd() or path in Path.cwd().parents:
            return
        try:
            path.rmdir()
        except OSError:
            return
