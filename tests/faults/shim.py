"""The shim `shim.c` from Python: compile it, arm it, read what it has seen, lose what was not synced."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
KINDS = ("create", "open", "write", "name", "remove", "sync", "close", "meta")  # as in shim.c
COMPILER = shutil.which("cc")


def build(folder: Path) -> Path:
    """Compile the shim into `folder` -> the library."""
    library = folder / "shim.so"
    command = [COMPILER or "cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def preloaded(library: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return an environment whose processes have the shim, not armed yet."""
    return {**environment, "LD_PRELOAD": str(library)}


@dataclass(frozen=True)
class Fault:
    """What happens at the n-th call that changes the file system.

    Attributes:
        number: of the call, from 1; 0: nothing happens, calls are only counted.
        action: `kill` before the call; `tear`: half of a write, then the end of the process; `fail` with `error`;
            `short`: half of a write.
        error: an errno.
        is_lasting: all later calls fail as well.
    """

    number: int = 0
    action: str = "trace"
    error: int = 0
    is_lasting: bool = False

    def __str__(self) -> str:
        what = os.strerror(self.error) if self.action == "fail" else self.action
        return f"call {self.number}: {what}{', and from then on' if self.is_lasting else ''}"

    def arm(self, *folders: Path, trace: Path | None = None) -> None:
        """Let it happen in this process, which has the shim, below `folders`; `trace` gets a line per call."""
        names = ":".join(map(str, folders)).encode()
        library = ctypes.CDLL(None)
        library.faults_arm.argtypes = [ctypes.c_char_p] * 2 + [
            ctypes.c_long,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_int,
        ]
        where = None if trace is None else str(trace).encode()
        library.faults_arm(names, where, self.number, self.action.encode(), self.error, self.is_lasting)

    def variables(self, *folders: Path, trace: Path | None = None) -> dict[str, str]:
        """Return the variables that arm a process which is started with the shim."""
        values = {"FAULTS_UNDER": ":".join(map(str, folders)), "FAULTS_AT": str(self.number)}
        values |= {"FAULTS_ACTION": self.action, "FAULTS_ERRNO": str(self.error)}
        values |= {"FAULTS_LASTING": "1"} if self.is_lasting else {}
        return values | ({"FAULTS_TRACE": str(trace)} if trace else {})


def disarm() -> None:
    """Count no more in this process."""
    ctypes.CDLL(None).faults_disarm()


@dataclass(frozen=True)
class Call:
    """A call that changed the file system: its number, what kind it is, its name, its path.

    `detail` is the other path of a renaming, the size of a file before it is written or synced, or how it is opened.
    """

    number: int
    kind: str
    name: str
    path: str
    detail: str


def calls_of(trace: Path) -> list[Call]:
    """Return the calls that a process has traced, in order."""
    rows = [line.split("\t") for line in trace.read_text(encoding="utf-8").splitlines()] if trace.exists() else []
    return [Call(int(number), KINDS[int(kind)], name, path, detail) for number, kind, name, path, detail in rows]


def lose_unsynced(calls: list[Call], sizes: Mapping[str, int]) -> list[Path]:
    """Do what a loss of power does to files after `calls`: cut what was written and not synced; names are kept.

    This is the state that ext4 and XFS may leave of a file that was renamed before its data were written back.

    Args:
        calls: those of a process that was killed.
        sizes: of the files that existed before, by path.

    Returns:
        The files that were cut.
    """
    safe: dict[str, int] = {}  # path -> bytes on the disk, of files that were written
    for call in calls:
        if call.name in ("open", "fopen"):
            is_old = call.detail == "" or call.path in safe
            safe.setdefault(call.path, sizes.get(call.path, 0) if is_old else 0)
            safe[call.path] = 0 if call.detail == "truncated" else safe[call.path]
        elif call.name == "fsync" and call.path in safe:
            safe[call.path] = int(call.detail)
        elif call.name == "rename":
            moved = {path: size for path, size in safe.items() if (path + "/").startswith(call.path + "/")}
            for path, size in moved.items():
                del safe[path]
                safe[call.detail + path[len(call.path) :]] = size
    cut = []
    for path, size in safe.items():
        if os.path.isfile(path) and os.path.getsize(path) > size:
            os.truncate(path, size)
            cut.append(Path(path))
    return cut
