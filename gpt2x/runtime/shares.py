"""Jobs that run at a time on one machine: each has its share of the cores, and its lines can be told apart.

The places are lock files, so that jobs of any launcher find them, whoever started them, and a killed job's place is
free again. A file system without locks has all jobs at the first place.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gpt2x.runtime.locks import lock

PREFIX = "GPT2X_LINE_PREFIX"  # in a job beside others: what its lines begin with
POLL_S = 0.2
FOLDER = ".places"  # in the directory of the sweep


@contextmanager
def share_of_cores(sweep_dir: Path, places: int, prefix: str) -> Iterator[None]:
    """Wait for one of the machine's places, then keep this process and those that it starts to the place's cores.

    Args:
        sweep_dir: directory of the sweep.
        places: jobs that run at a time; one has all cores.
        prefix: of the job's lines, if there are several places.
    """
    if places == 1:
        yield
        return
    before, threads = os.sched_getaffinity(0), os.environ.get("OMP_NUM_THREADS")
    with place(sweep_dir / FOLDER, places) as number:
        cores = cores_of(sorted(before), number, places)
        os.sched_setaffinity(0, cores)
        os.environ |= {"OMP_NUM_THREADS": str(len(cores)), PREFIX: prefix}
        try:
            yield
        finally:  # a launcher's process runs further jobs
            os.sched_setaffinity(0, before)
            os.environ.pop(PREFIX)
            if threads is None:
                os.environ.pop("OMP_NUM_THREADS")
            else:
                os.environ["OMP_NUM_THREADS"] = threads


def cores_of(cores: Sequence[int], number: int, places: int) -> list[int]:
    """Return the cores of a place: an equal share, or one that several places use if there are too few."""
    count = len(cores) // places
    return list(cores[number * count : (number + 1) * count]) if count else [cores[number % len(cores)]]


@contextmanager
def place(folder: Path, places: int) -> Iterator[int]:
    """Hold one of this machine's places, from 0; wait until one is free."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(places):
            with (folder / f"{socket.gethostname()}_{number}").open("w") as file:
                if lock(file) is not False:
                    yield number
                    return
        time.sleep(POLL_S)


def prefixed(source: IO[bytes], descriptor: int, prefix: str) -> threading.Thread:
    """Start a thread that copies lines from a pipe to an open file, each with `prefix`, until the pipe is closed."""

    def copy() -> None:
        with source:
            for line in source:
                os.write(descriptor, prefix.encode() + line.rstrip(b"\r\n") + b"\n")

    thread = threading.Thread(target=copy, name="prefix", daemon=True)
    thread.start()
    return thread
