"""Locks of open files (flock(2)): the kernel releases them when their holder dies, however that happens."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

POLL_S = 0.05


def lock(file: int | IO, kind: int = fcntl.LOCK_EX, wait_s: float = 0.0) -> bool | None:
    """Lock an open file, until it is closed.

    Args:
        file: a file or its descriptor; open for writing, because flock over NFS needs that.
        kind: LOCK_EX or LOCK_SH.
        wait_s: seconds that another process may take to release it; inf: as many as it takes.

    Returns:
        True; False if another process has it; None if the file system has no locks.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # the second where fcntl(2) stands in for flock(2), as on NFS
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        except OSError:
            return None
        else:
            return True


def release(descriptor: int) -> None:
    """Close a file that was opened for its lock; what a full disk says then is about nothing that anyone needs."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: Path, wait_s: float = math.inf) -> Iterator[bool | None]:
    """Create a file if it is not there, and hold its lock until the block ends; yield what `lock` returns.

    Raises:
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield lock(descriptor, wait_s=wait_s)
    finally:
        release(descriptor)
