"""Memory of this process and this machine, in GB of 1e9 bytes, and the age of a process."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def process_memory_gb() -> float:
    """Return the resident memory of this process (GB)."""
    import psutil

    return psutil.Process().memory_info().rss / 1e9


def process_age_s(pid: int) -> float:
    """Return the seconds since process `pid` was started, including the start of its interpreter."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux; psutil rounds the boot time to seconds
        started = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    import psutil

    return time.time() - psutil.Process(pid).create_time()


def peak_process_memory_gb() -> float:
    """Return the largest resident memory of this process so far (GB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes on macOS, KiB elsewhere


def machine_memory_gb() -> float:
    """Return the memory that a process can use (GB): the machine's, or the limit of its container."""
    import psutil

    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no such control group, or "max"
        total = min(total, int(_CGROUP_LIMIT.read_text()))
    return total / 1e9
