"""Records of owners of directories, and whether the owners live; `gpt2x.runtime.owner` says how that is known."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from uuid import uuid4

from gpt2x.runtime.jobs import typed_command
from gpt2x.runtime.locks import lock, release

RECORD = re.compile(r"\.owner\.(\d+)")
RECORD_BYTES = 1 << 20
BEGIN_S = 5.0  # from the creation of a record to its end, on a file system without links
LIMIT_S = 600.0  # Python's threads may stand still while MindSpore compiles


@dataclass(frozen=True)
class Owner:
    """A process that writes to a directory.

    Attributes:
        pid: its number.
        host: the name of its machine.
        since: unix seconds.
        command: as it was typed.
        boot: changes whenever the machine starts.
        namespace: of process numbers; containers of one machine have different ones.
        started: when the process was started, in ticks since the boot; None if the system does not say.
        has_lock: the file system has locks.
        token: of this record only.
    """

    pid: int
    host: str
    since: float
    command: str
    boot: str
    namespace: str
    started: int | None
    has_lock: bool = True
    token: str = field(default_factory=lambda: uuid4().hex)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}: {self.command}"


@dataclass(frozen=True)
class Record:
    """A file of a directory that names an owner.

    Attributes:
        path: the file.
        owner: None if the file is not written yet, or is damaged, as after a loss of power.
        touched: when its owner last gave a sign of life, by the clock of the file system.
        is_locked: a process has locked it.
    """

    path: Path
    owner: Owner | None
    touched: float
    is_locked: bool

    @property
    def is_alive(self) -> bool:
        """True unless the owner is known to be gone."""
        if self.is_locked:
            return True
        if self.owner is None:
            return self.silent_s < BEGIN_S
        if self.owner.boot == boot() and self.owner.has_lock:
            return False
        if (self.owner.boot, self.owner.namespace) == (boot(), namespace()):
            return is_running(self.owner)
        return self.silent_s < LIMIT_S

    @property
    def silent_s(self) -> float:
        """The seconds since then."""
        return abs(file_system_time(self.path.parent) - self.touched)

    @property
    def is_orphaned(self) -> bool:
        """True if only processes that the owner started are left, which end by themselves."""
        owner = self.owner
        is_here = owner is not None and (owner.boot, owner.namespace) == (boot(), namespace())
        return self.is_locked and owner is not None and is_here and not is_running(owner)


def records_of(directory: Path) -> list[Record]:
    """Return the records of a directory, the newest number first; none if it cannot be read."""
    with contextlib.suppress(OSError):
        paths = [directory / name for name in os.listdir(directory) if RECORD.fullmatch(name)]
        records = [read_record(path) for path in sorted(paths, key=number_of, reverse=True)]
        return [record for record in records if record is not None]
    return []


def number_of(path: Path) -> int:
    """Return the number in the name of a record."""
    match = RECORD.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def read_record(path: Path) -> Record | None:
    """Read a record and try its lock; return None if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR)  # flock over NFS needs a file that is open for writing
    except FileNotFoundError:
        return None
    except OSError:  # a directory of another user, or a read-only file system
        descriptor = os.open(path, os.O_RDONLY)
    try:
        is_locked = lock(descriptor, fcntl.LOCK_SH) is False
        owner = read_owner(os.pread(descriptor, RECORD_BYTES, 0))
        return Record(path, owner, os.fstat(descriptor).st_mtime, is_locked)
    finally:
        release(descriptor)


def read_owner(text: bytes) -> Owner | None:
    """Return what a record says; None if it is damaged."""
    try:
        values = json.loads(text)
        owner = Owner(**{each.name: values[each.name] for each in fields(Owner)})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    is_whole = isinstance(owner.pid, int) and isinstance(owner.since, int | float)
    return owner if is_whole else None


def file_system_time(directory: Path) -> float:
    """Return the time by the clock of the file system; this machine's if nothing can be written there."""
    probe = directory / f".owner.now-{uuid4().hex[:8]}"
    try:
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink()
    except OSError:
        return time.time()


def this_process(has_lock: bool) -> Owner:
    """Return this process, as it owns a directory from now on."""
    pid = os.getpid()
    return Owner(
        pid, socket.gethostname(), time.time(), typed_command(), boot(), namespace(), start_ticks(pid), has_lock
    )


def boot() -> str:
    """Return what differs between machines, and between two starts of one (Linux; elsewhere the machine's name)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return socket.gethostname()


def namespace() -> str:
    """Return the namespace of this process's number; "" if the system has none."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """Return when a process was started, in ticks since the boot; None if it has ended or the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # proc(5): the state and the start time are fields 3 and 22


def is_running(owner: Owner) -> bool:
    """Return whether the process of an owner in this namespace lives; a zombie does not."""
    if owner.started is not None:
        return start_ticks(owner.pid) == owner.started
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
