"""One builder per directory of a cache: others wait for it, and what killed ones have left is removed.

The kernel releases a lock (flock(2)) when its holder dies, however that happens, so no lock is ever stale. On a file
system without locks each process builds for itself, and the first to finish wins.

Only for folders of a cache: files there that look like what a killed builder left are removed.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.runtime.console import stderr
from gpt2x.runtime.locks import lock, release

# what `new_directory` and this file put beside NAME while it is built
REMAINS = re.compile(r"\.(?P<name>.+)\.((tmp|old)-[0-9a-f]+|lock)")
HOLDER_BYTES = 200


@contextmanager
def sole_builder(directory: Path, *, key: str = "") -> Iterator[None]:
    """Hold the lock of `directory` in the block; wait first, with a notice, while another process builds it.

    Whatever killed builders have left in the same folder is removed: of `directory`, and of others that nobody builds.

    Args:
        directory: will be built, beside its lock `.NAME.lock`, which is removed afterwards.
        key: the configuration key that names the folder, for messages.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(directory, waits=True)
    except OSError as error:
        raise UserError(
            f"{key and f'{key}: '}cannot write {directory} ({error.strerror or error}); nothing there has changed. "
            "Free space or give a different directory."
        ) from error
    try:
        if descriptor is not None:
            remove_remains(directory)
        yield
    finally:
        if descriptor is not None:
            _release(directory, descriptor)


@contextmanager
def if_sole_builder(directory: Path) -> Iterator[bool]:
    """Hold the lock of `directory` in the block, if no other process does; yield whether this one may build it."""
    descriptor = None
    with contextlib.suppress(OSError):
        directory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(directory, waits=False)
    try:
        if descriptor is not None:
            remove_remains(directory)
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _release(directory, descriptor)


def remove_remains(directory: Path) -> None:
    """Remove what killed builders left beside `directory`, whose lock this process holds, and of unlocked others."""
    remains: dict[str, list[Path]] = {}
    for path in directory.parent.iterdir():
        if match := REMAINS.fullmatch(path.name):
            remains.setdefault(match["name"], []).append(path)
    for name, paths in remains.items():
        other = directory.with_name(name)
        if name == directory.name:
            for path in paths:
                if path != _lock_of(directory):
                    remove(path)
            continue
        with contextlib.suppress(OSError):
            descriptor = _locked(other, waits=False)
            if descriptor is not None:
                for path in paths:
                    if path != _lock_of(other):
                        remove(path)
                _release(other, descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, as far as the system lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _lock_of(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.lock")


def _locked(directory: Path, *, waits: bool) -> int | None:
    """Return a descriptor that holds the lock of `directory`; None if another has it, or the system has no locks."""
    path = _lock_of(directory)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        is_locked = lock(descriptor)
        if is_locked is False and waits:
            holder = os.pread(descriptor, HOLDER_BYTES, 0).decode("utf-8", "replace").strip()
            stderr.notice(f"{directory} is being built by {holder or 'another process'}; waiting for it")
            is_locked = lock(descriptor, wait_s=math.inf)
        if not is_locked:
            release(descriptor)
            if is_locked is None:
                path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # else its holder has just removed it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
                return descriptor
        release(descriptor)


def _release(directory: Path, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        _lock_of(directory).unlink()  # before the lock is released: nobody can hold a file that has no name
    release(descriptor)
