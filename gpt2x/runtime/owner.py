"""The one process that may write to a directory: a run, a sweep, or a place where several choose (no mindspore).

The owner leaves a record in the directory, `.owner.N`: process, host, since when, command. The file is locked (flock)
before it appears, and appears complete, by link(2). That fails if the name is taken, also on a file system that several
machines share. Without links, open(2) creates the file and fails likewise; it is then locked and written. The lock ends
with the process, however that ends, and with the last process that it started as a part of the run, since those inherit
the descriptor.

A record without a living owner is left by a process that was killed. A new owner then takes the next number, so that of
several only one succeeds, and removes the old record. Whether an owner lives is answered by the first of these that can
tell:

1. The file is locked: it lives. (Where several machines share the locks, this holds for all of them.)
2. The record is of this machine since its last boot, and this file system has locks: it is dead.
3. The record is of this machine since its last boot, without locks: the process of that number and that start lives.
4. Another machine, or an earlier boot: the record is touched every `BEAT_S` seconds; after `LIMIT_S` seconds without
   that, its owner counts as dead. The times are those of the file system, so that clocks may differ.

An owner whose record was taken by another one, because it was stopped longer than that, ends at once.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from uuid import uuid4

from gpt2x.errors import UserError
from gpt2x.runtime.console import show_error
from gpt2x.runtime.locks import lock, release
from gpt2x.runtime.owner_record import LIMIT_S, Owner, Record, boot, number_of, records_of, this_process

OWNERS = "GPT2X_OWNERS"  # in processes that an owner starts: the tokens of its records; they may write as it does
BEAT_S = 20.0
ORPHANS_S = 20.0  # for the processes of an owner that was killed to end
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}  # of link(2)
SETTLE_S = 1.0  # a process that was too late gives way within that
POLL_S = 0.1


class OwnedError(UserError):
    """A directory belongs to another process."""


def living_owner(directory: Path) -> Owner | None:
    """Return the process to which a directory belongs; None if there is none."""
    return next((record.owner for record in records_of(directory) if record.is_alive), None)


def is_record(path: Path) -> bool:
    """Return whether a file of a directory only names its owner."""
    return path.name.startswith(".owner.")


@contextlib.contextmanager
def owning(directory: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Own a directory until the block ends, or the process; create it, and remove it again if it stays empty.

    A block within a block of the same directory, and a process that its owner started, belong to the owner.

    Args:
        directory: what nobody else may write.
        wait_s: how long to wait for another owner to end.

    Raises:
        OwnedError: it belongs to another process, which the message names.
        UserError: the directory cannot be written.
    """
    directory = Path(os.path.abspath(directory))
    if directory in _holds:
        yield
        return
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    hold = None
    try:
        try:
            hold = _take(directory, wait_s)
        except OSError as error:
            raise UserError(
                f"cannot write {directory} ({error.strerror or error}); give a directory that is writable."
            ) from error
        yield
    finally:
        if hold is not None:
            hold.release()
        for path in missing:  # the deepest first
            with contextlib.suppress(OSError):
                path.rmdir()


def descriptors() -> list[int]:
    """Return the open records of this process; a child that inherits them keeps the locks while it lives."""
    return [hold.descriptor for hold in _holds.values()]


# ---- taking a directory


class _Hold:
    """A directory that this process owns; a thread touches its record."""

    def __init__(self, path: Path, descriptor: int, owner: Owner):
        self.path, self.descriptor, self.owner = path, descriptor, owner
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._pid = os.getpid()
        _holds[path.parent] = self
        _announce()
        self._thread.start()

    def release(self) -> None:
        """Give the directory up."""
        _holds.pop(self.path.parent, None)
        _announce()
        if os.getpid() == self._pid:  # not in a process that was forked within the block
            self._ending.set()
            self._thread.join()
            with contextlib.suppress(OSError):
                self.path.unlink()
        release(self.descriptor)

    def _beat(self) -> None:
        while not self._ending.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a disk that fails for a while; the run says so when it writes
                os.utime(self.descriptor)
                self.check()

    def successor(self) -> Owner | None:
        """Return another living owner of the directory, if there is one."""
        others = [record for record in records_of(self.path.parent) if record.path != self.path]
        return next((record.owner for record in others if record.is_alive), None)

    def check(self) -> None:
        """End this process if the directory belongs to another one by now."""
        owner = self.successor()
        if owner is None or self._ending.wait(SETTLE_S):
            return
        if owner == self.successor():  # else that one has seen this one, and given way
            show_error(
                f"{self.path.parent} belongs to another process by now, since this one gave no sign of life for "
                f"{LIMIT_S:g} s; it ends, and writes nothing more. The owner is {owner}."
            )
            os._exit(1)


_holds: dict[Path, _Hold] = {}


def _announce() -> None:
    """Let processes that are started from now on belong to the directories of this one."""
    tokens = [hold.owner.token for hold in _holds.values()]
    os.environ[OWNERS] = " ".join([*_inherited, *tokens])


_inherited = os.environ.get(OWNERS, "").split()


def _take(directory: Path, wait_s: float) -> _Hold | None:
    """Own a directory; return None if it belongs to the process that started this one.

    Raises:
        OwnedError: it belongs to another process.
        OSError: it cannot be written.
    """
    began = time.monotonic()
    while True:
        records = records_of(directory)
        living = [record for record in records if record.is_alive]
        if any(record.owner is not None and record.owner.token in _inherited for record in living):
            return None
        if not living:
            with contextlib.suppress(FileNotFoundError):  # removed by a process that left it empty
                directory.mkdir(parents=True, exist_ok=True)
                hold = _create(directory, max((number_of(record.path) for record in records), default=0) + 1)
                if hold is not None:
                    return hold
        elif time.monotonic() - began > (max(wait_s, ORPHANS_S) if living[0].is_orphaned else wait_s):
            raise OwnedError(_rejection(directory, living[0]))
        time.sleep(POLL_S * random.uniform(0.5, 1.5))


def _create(directory: Path, number: int) -> _Hold | None:
    """Create a record of this process and remove those of dead owners; return None if another process was faster."""
    path = directory / f".owner.{number}"
    try:
        descriptor, owner = _linked(path) or _opened(path)
    except FileExistsError:
        return None
    others = [record for record in records_of(directory) if record.path != path]
    if any(record.is_alive for record in others):  # it began after a dead owner was seen here
        path.unlink()
        release(descriptor)
        return None
    for record in others:
        record.path.unlink(missing_ok=True)
    return _Hold(path, descriptor, owner)


def _linked(path: Path) -> tuple[int, Owner] | None:
    """Create a record that appears complete; return None on a file system without links."""
    part = path.with_name(f".owner.part-{uuid4().hex[:8]}")
    descriptor, owner = _opened(part)
    try:
        os.link(part, path)
    except OSError as error:
        release(descriptor)
        if error.errno in NO_LINKS:
            return None
        raise
    finally:
        part.unlink(missing_ok=True)
    return descriptor, owner


def _opened(path: Path) -> tuple[int, Owner]:
    """Create a file that did not exist, lock it and write the record of this process."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        owner = this_process(has_lock=lock(descriptor) is not None)
        os.write(descriptor, json.dumps(asdict(owner)).encode())
        os.fsync(descriptor)
    except BaseException:
        release(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor, owner


def _rejection(directory: Path, record: Record) -> str:
    owner = record.owner
    if owner is None:
        return f"{directory} belongs to another process, which is just beginning; start again when it has ended."
    fix = f"wait for its end, or end it: kill {owner.pid}."
    if record.is_orphaned:
        fix = "it is gone, but a process that it started still runs; end that one."
    elif owner.boot != boot():
        fix = f"wait for its end, or end it there: kill {owner.pid}."
        if not record.is_locked:
            fix += (
                f" Its last sign of life was {record.silent_s:.0f} s ago; after {LIMIT_S:.0f} s without one it counts"
            )
            fix += f" as dead. If you know that it is gone, delete {record.path}."
    return f"{directory} belongs to {owner}\n  {fix[0].upper()}{fix[1:]}"
