"""Directories and files that appear complete or not at all: written beside the target, renamed (POSIX rename(2))."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from gpt2x.errors import UserError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
Agree = Callable[[bool], bool]  # collective: True if every process of the group passes True; also a barrier


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """Yield a file beside `target`, which becomes `target` when the block ends without an error.

    Its content is on the disk (fsync) before, so that a loss of power leaves the old or the new file. What processes of
    this machine left that were killed meanwhile is removed.

    Raises:
        OSError: with the name of `target`; what was there before is unchanged.
    """
    stem = f".{target.name}.{socket.gethostname()}-"
    part = target.with_name(f"{stem}{os.getpid()}.part")
    for name in os.listdir(target.parent) if target.parent.is_dir() else ():
        if name.startswith(stem) and not _is_written(name[len(stem) :].removesuffix(".part")):
            target.with_name(name).unlink(missing_ok=True)
    try:
        yield part
        sync(part)
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(target)
        raise


def _is_written(pid: str) -> bool:
    """Return whether a process of this machine may still write its file."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, OverflowError, OSError):
        return True
    return True


def write_durably(target: Path, content: bytes) -> None:
    """Write a file, completely or not at all; it and its name are on the disk (fsync) when this returns.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    with replaced(target) as part:
        part.write_bytes(content)
    sync(target.parent)


@contextmanager
def together(agree: Agree, target: Path) -> Iterator[None]:
    """Fail on every process if the block fails on one, so that no process waits for another.

    Args:
        agree: called once, whatever happens in the block.
        target: the directory that is written, for the message.

    Raises:
        UserError: another process failed.
    """
    try:
        yield
    except BaseException:
        agree(False)
        raise
    if not agree(True):
        raise UserError(
            f"cannot write {target}: another process failed, its message says why. Nothing there has changed."
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
    """Yield an empty sibling of `target`, which is renamed to `target` when the block ends without an error.

    Every file and directory is synced before the rename. An existing directory with files changes places with the new
    one in one step, and is deleted last. Where the file system cannot do that, it is moved aside before.

    Args:
        target: the directory that will be complete.
        key: the configuration key that names `target`, for messages.
        keep: asked if `target` has files: True keeps them and drops the new ones.
        rank: of several processes that fill the directory together, 0 creates, syncs and renames it.
        agree: of these processes; if one of them fails, all do.

    Raises:
        UserError: the system rejected a write (full disk, permission); `target` has not changed.
    """
    target = target.absolute()
    mark = uuid4().hex[:8] if agree is None else "shared"  # a name that all processes share
    agree = agree or (lambda is_well: is_well)
    temporary, aside = (target.with_name(f".{target.name}.{use}-{mark}") for use in ("tmp", "old"))
    try:
        with together(agree, target):
            if rank == 0:
                shutil.rmtree(temporary, ignore_errors=True)  # left by processes that were killed
                _settle(aside, target)
                temporary.mkdir(parents=True)
        with together(agree, target):
            yield temporary
            if rank == 0:
                _put_in_place(temporary, target, aside, keep)
    except OSError as error:
        raise UserError(
            f"{key and f'{key}: '}cannot write {target} ({error.strerror or error}); nothing there has changed. Free "
            "space or give a different directory."
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
    except OSError:  # `target` is a directory with files
        if not target.is_dir():
            raise
        if not keep() and not exchanged(temporary, target):
            target.rename(aside)
            temporary.rename(target)
    sync(target.parent)


def exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False if the file system cannot (renameat2(2), RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "renameat2"):
        return False
    return libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _settle(aside: Path, target: Path) -> None:
    """Move back what was moved aside, or delete it if its successor is in place."""
    if aside.exists() and not target.exists():
        aside.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """fsync a file or a directory."""
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


def shortened(values: list[str]) -> list[str]:
    """Return the shortest ends of paths that no other path shares; return other values as they are."""
    if not any(os.sep in value for value in values):
        return values
    paths = [Path(value).expanduser().absolute().parts for value in values]

    def name(path: tuple[str, ...]) -> str:
        lengths = range(1, len(path) + 1)
        return os.path.join(*next(path[-n:] for n in lengths if all(p == path for p in paths if p[-n:] == path[-n:])))

    return [name(path) for path in paths]
