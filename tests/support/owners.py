"""Other processes that own a directory: forked, so that no program starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gpt2x.runtime import owner
from gpt2x.runtime.owner import owning


@contextmanager
def forked(body: Callable[[Callable[[], object]], None]) -> Iterator[int]:
    """Run `body` in a forked process, which has said that it is ready by then; kill it at the end."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        owner._holds.clear()
        os.close(reading)
        try:
            body(lambda: os.write(writing, b"."))
        finally:
            os._exit(0)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    try:
        yield pid
    finally:
        os.close(reading)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def own_for_ever(directory: Path) -> Callable[[Callable[[], object]], None]:
    """Return what owns a directory until its process is killed."""

    def body(ready: Callable[[], object]) -> None:
        with owning(directory):
            ready()
            time.sleep(60)

    return body
