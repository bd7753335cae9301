"""Directories and files that appear complete or not at all: written beside the target, renamed (POSIX rename(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from gpt2x.errors import UserError

_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD of fcntl.h: paths are absolute; renameat2(2)


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


class NewDirectory:
    """A directory that is filled under a hidden name and gets its own name at the end.

    An existing directory with files changes places with it and is deleted last. Where the file system cannot do that in
    one step, it is moved aside first. So one complete copy exists at every moment.

    Attributes:
        target: the directory that will be complete.
        temporary: where it is filled.
        is_in_place: `temporary` has become `target`, or was not needed.

    Args:
        target: see above.
        mark: of the hidden names; several processes that fill it together have the same.
    """

    def __init__(self, target: Path, mark: str):
        self.target = target.absolute()
        self.temporary, self._aside = (self.target.with_name(f".{target.name}.{use}-{mark}") for use in ("tmp", "old"))
        self.is_in_place = False

    def put_in_place(self, keep: Callable[[], bool] = lambda: False) -> None:
        """Sync every file and directory, and rename; after an error it may be called again.

        Args:
            keep: asked if `target` has files: True keeps them and drops the new ones.

        Raises:
            OSError: the system rejected it; `target` has not changed.
        """
        if not self.is_in_place:
            for folder, _, names in os.walk(self.temporary, topdown=False):
                for path in (*(Path(folder, name) for name in names), Path(folder)):
                    sync(path)
            try:
                self._rename(keep)
            except OSError:
                self._settle()
                raise
            self.is_in_place = True
        sync(self.target.parent)

    def _rename(self, keep: Callable[[], bool]) -> None:
        try:
            self.temporary.rename(self.target)
        except OSError:  # `target` is a directory with files
            if not self.target.is_dir():
                raise
            if not keep() and not exchange(self.temporary, self.target):
                self.target.rename(self._aside)
                self.temporary.rename(self.target)

    def drop(self) -> None:
        """Delete what is hidden; what was moved aside is moved back unless its successor is in place."""
        shutil.rmtree(self.temporary, ignore_errors=True)
        self._settle()

    def _settle(self) -> None:
        if self._aside.exists() and not self.target.exists():
            self._aside.rename(self.target)
        shutil.rmtree(self._aside, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Let two paths of one file system change places in one step (Linux's renameat2); return False if it cannot."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = os.fsencode(first), os.fsencode(second)
    return function is not None and function(_HERE, paths[0], _HERE, paths[1], _RENAME_EXCHANGE) == 0


@contextmanager
def new_directory(target: Path, *, key: str = "", keep: Callable[[], bool] = lambda: False) -> Iterator[Path]:
    """Yield an empty sibling of `target`, which is renamed to `target` when the block ends without an error.

    Every file and directory is synced before the rename (`NewDirectory`).

    Args:
        target: the directory that will be complete.
        key: the configuration key that names `target`, for messages.
        keep: asked if `target` has files: True keeps them and drops the new ones.

    Raises:
        UserError: the system rejected a write (full disk, permission); `target` has not changed.
    """
    new = NewDirectory(target, uuid4().hex[:8])
    try:
        new.temporary.mkdir(parents=True)
        yield new.temporary
        new.put_in_place(keep)
    except OSError as error:
        raise cannot_write(new.target, error, key) from error
    finally:
        new.drop()


def cannot_write(target: Path, error: OSError, key: str = "") -> UserError:
    """Return the message for a directory that the system did not let be written; `key` names it."""
    return UserError(
        f"{key and f'{key}: '}cannot write {target} ({error.strerror or error}); nothing there has changed. Free "
        "space or give a different directory."
    )


def require_space(file: Path, num_bytes: int) -> None:
    """Check that the disk of a file has room for so many bytes more.

    Raises:
        OSError: ENOSPC, with the name of the file.
    """
    if shutil.disk_usage(file.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def sync(path: Path) -> None:
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create_new(first: Path) -> Path:
    """Create `first`, or the first of `first_2`, `first_3`, … that does not exist, and return it.

    Of several processes that ask for the same directory in one instant, each gets one of its own (mkdir(2) creates a
    directory once).
    """
    number, path = 1, first
    while True:
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
            path = first.with_name(f"{first.name}_{number}")
        except FileNotFoundError:  # also if another process has removed an empty parent in between
            first.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def written_by_rust(target: Path) -> Iterator[None]:
    """Turn the failure of a library in Rust, which raises a plain Exception, into that of the system.

    Raises:
        OSError: with the name of `target`.
    """
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)$", str(error))  # as std::io::Error shows itself
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(target)) from error


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
