"""What a worker does and for whom it waits, as its launcher reads it (docs/design/launch.md; imports no mindspore).

A worker writes one line into a file that it inherits whenever that changes, which takes some microseconds. Without a
launcher nothing is written.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

HEARTBEAT = "GPT2X_HEARTBEAT"  # in a process: the descriptor of the file
ALL = "all"  # waits for every process of the run
INSIDE = "inside"  # computes, and may wait for others within a graph
NOTHING = "nothing"
STACKS = signal.SIGURG  # asks a process for its stacks; one that is starting ignores it
LINE_BYTES = 4096  # at the start of the file; the stacks of Python's threads come after them


@dataclass(frozen=True)
class Heartbeat:
    """The last line of a process.

    Attributes:
        meetings: how many updates and exchanges of all processes it has entered; the same on all in the same order.
        waits_for: ALL, INSIDE, NOTHING, or the rank whose message it waits for.
        since: when that began, on the clock of `time.monotonic`, which all processes of a machine share.
        doing: in words.
    """

    meetings: int = 0
    waits_for: str = NOTHING
    since: float = 0.0
    doing: str = "starting"

    def line(self) -> bytes:
        """Return it as a line."""
        return f"{self.meetings} {self.waits_for} {self.since:.3f} {self.doing}\n".encode()[:LINE_BYTES]


def read(descriptor: int, started: float) -> Heartbeat:
    """Return what a process wrote, or that it is starting since `started`."""
    line = os.pread(descriptor, LINE_BYTES, 0).partition(b"\n")[0].decode("utf-8", "replace")
    if not line:
        return Heartbeat(since=started)
    meetings, waits_for, since, doing = line.split(" ", 3)
    return Heartbeat(int(meetings), waits_for, float(since), doing)


def read_stacks(descriptor: int) -> list[str]:
    """Return the lines that `register_stacks` wrote after a signal: thread by thread, the main thread last."""
    return os.pread(descriptor, 1 << 20, LINE_BYTES).decode("utf-8", "replace").splitlines()


_current = Heartbeat()


def _write(meetings: int, waits_for: str, doing: str) -> None:
    global _current
    _current = Heartbeat(meetings, waits_for, time.monotonic(), doing)
    descriptor = os.environ.get(HEARTBEAT)
    if descriptor is not None:
        os.pwrite(int(descriptor), _current.line(), 0)


def does(doing: str) -> None:
    """Say that this process does something that waits for nobody."""
    _write(_current.meetings, NOTHING, doing)


def meets(doing: str) -> None:
    """Say that this process enters an update: it computes, and meets all others within graphs."""
    _write(_current.meetings + 1, INSIDE, doing)


@contextmanager
def exchange() -> Iterator[None]:
    """Say that this process waits for all others, until the block ends; after a failure, that it still does."""
    before, meetings = _current, _current.meetings + 1
    _write(meetings, ALL, f"{before.doing}, an exchange of all processes")
    yield
    _write(meetings, before.waits_for, before.doing)


@contextmanager
def message(what: str, rank: int) -> Iterator[None]:
    """Say that this process waits for a message from or to a rank, until the block ends; after a failure, still."""
    before = _current
    _write(before.meetings, str(rank), f"{before.doing}, {what} rank {rank}")
    yield
    _write(before.meetings, before.waits_for, before.doing)


def register_stacks() -> None:
    """Have STACKS write the stacks of Python's threads into the file, even while the process waits in MindSpore."""
    if HEARTBEAT in os.environ:
        descriptor = int(os.environ[HEARTBEAT])
        os.lseek(descriptor, LINE_BYTES, os.SEEK_SET)
        faulthandler.register(STACKS, file=descriptor)
