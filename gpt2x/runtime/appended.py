"""Files that only grow, and survive a full disk and a power loss as far as `Appended.sync` promises.

A write that fails does not end a run: the content stays in memory, and the next write tries it again. After a failed
fsync the kernel may have dropped what it could not write, and a second fsync would not say so. So everything since the
last fsync that succeeded is written again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import count, takewhile
from pathlib import Path
from threading import Lock
from typing import Any

from gpt2x.runtime.console import console
from gpt2x.runtime.files import sync, write_durably

SYNC_BYTES = 1 << 20  # appended without a fsync: kept in memory, so fsynced earlier than a checkpoint asks


class Appended:
    """Appends to a file; one thread appends while a different one may fsync.

    Args:
        path: the file; it is created by the first `append`.
    """

    def __init__(self, path: Path):
        self.path = path
        self._lock = Lock()
        self._has_failed = False  # what fails again and again is said once
        self._reset()

    def _reset(self) -> None:
        self._descriptor: int | None = None
        self._has_name = False  # the directory's entry is on the disk
        self._before = 0  # bytes of the file that need no second write
        self._tail = bytearray()  # what follows them
        self._written = 0  # bytes of the tail that are in the file
        self._digest = hashlib.sha256()  # of all bytes

    def append(self, content: bytes) -> None:
        """Write `content` at the end; if the disk rejects it, say so and try again at the next call."""
        with self._lock:
            self._tail += content
            if self._descriptor is not None:
                self._digest.update(content)
            try:
                self._open()
                self._write()
            except OSError as error:
                self._fail(error)
        if self._written > SYNC_BYTES:
            self.sync()

    def sync(self) -> bool:
        """Return whether all that was appended is on the disk now, with the file's name; if not, it has been said."""
        with self._lock:
            if self._descriptor is None and not self._tail:
                return True
            try:
                self._open()
                self._write()
            except OSError as error:
                self._fail(error)
                return False
            descriptor, length = os.dup(self._opened), self._written
        try:
            os.fsync(descriptor)  # without the lock, so that nobody who appends waits for the disk
            if not self._has_name:
                sync(self.path.parent)
        except OSError as error:
            with self._lock:
                with suppress(OSError):  # the disk is gone; nothing is written twice
                    os.ftruncate(descriptor, self._before)
                    self._written = 0
                self._fail(error)
            return False
        finally:
            with suppress(OSError):  # the fsync has said whether all is on the disk
                os.close(descriptor)
        with self._lock:
            self._has_name, self._has_failed = True, False
            self._before += length
            self._written -= length
            del self._tail[:length]
        return True

    def mark(self) -> dict[str, Any]:
        """Return the length and the SHA-256 of all that was appended, which a checkpoint keeps (`intact_length`)."""
        with self._lock:
            if self._tail or self.path.exists():
                try:
                    self._open()
                except OSError as error:
                    self._fail(error)
            return {"bytes": self._before + len(self._tail), "sha256": self._digest.hexdigest()}

    def cut(self, kept: bytes, moved: bytes) -> Path:
        """Keep only `kept` of the file; write `moved`, the rest, beside it first, so that a crash loses nothing.

        Returns:
            The file with `moved`: NAME.1.SUFFIX, or the next number.

        Raises:
            OSError: one of them cannot be written; the file is unchanged.
        """
        self.close()
        aside = set_aside(self.path, moved)
        write_durably(self.path, kept)
        return aside

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        with self._lock:
            if self._descriptor is not None:
                try:
                    os.close(self._descriptor)
                except OSError as error:
                    self._fail(error)
            self._reset()

    @property
    def _opened(self) -> int:
        assert self._descriptor is not None
        return self._descriptor

    def _open(self) -> None:
        if self._descriptor is not None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        self._before = len(content)
        self._digest = hashlib.sha256(content + self._tail)

    def _write(self) -> None:
        while self._written < len(self._tail):
            self._written += os.write(self._opened, bytes(self._tail[self._written :]))

    def _fail(self, error: OSError) -> None:
        if not self._has_failed:
            console.warn(
                f"{self.path} cannot be written ({error.strerror or error}). The run continues, keeps what belongs "
                "there in memory, and tries again; free space or change the permissions."
            )
        self._has_failed = True


def set_aside(path: Path, content: bytes) -> Path:
    """Write what is taken out of `path` to NAME.1.SUFFIX, or the next number, durably; return the file.

    If the newest of these files has this content already, a crash came before the second step, and it is kept.

    Raises:
        OSError: it cannot be written.
    """
    earlier = asides(path)
    if earlier and earlier[-1].read_bytes() == content:
        return earlier[-1]
    aside = path.with_name(f"{path.stem}.{len(earlier) + 1}{path.suffix}")
    write_durably(aside, content)
    return aside


def asides(path: Path) -> list[Path]:
    """Return the files that `set_aside` has made, the oldest first."""
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
    return list(takewhile(Path.exists, names))


def intact_length(content: bytes, mark: Mapping[str, Any] | None) -> int | None:
    """Return the length of the part of a file that a checkpoint refers to, if it is what it was; None: it is not.

    Args:
        content: of the file.
        mark: what `Appended.mark` returned then; None: nothing is known.
    """
    if mark is None:
        return None
    length = int(mark["bytes"])
    is_intact = len(content) >= length and hashlib.sha256(content[:length]).hexdigest() == mark["sha256"]
    return length if is_intact else None
