"""Memory of this process, its device and this machine, in GB of 1e9 bytes, and the age of a process."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_LIMIT = _CGROUP / "memory.max"


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


def device_memory_gb() -> dict[str, float]:
    """Return what MindSpore's memory pool has on this process's device (GB); empty if the device is the CPU.

    `in_use` is what tensors take now, `peak` the most that they took since the start of the process, `reserved` what
    the pool has taken from the device. Source: mindspore.runtime of MindSpore 2.10, where all are 0 on the CPU.
    """
    import mindspore as ms

    if ms.get_current_device().device_target == "CPU":
        return {}
    pool = ms.runtime
    sizes = {
        "in_use": pool.memory_allocated(),
        "peak": pool.max_memory_allocated(),
        "reserved": pool.memory_reserved(),
    }
    return {name: size / 1e9 for name, size in sizes.items()}


def peak_memory_gb() -> float:
    """Return the peak of the memory that a plan predicts (GB): the device's; on the CPU, the process's."""
    return device_memory_gb().get("peak", peak_process_memory_gb())


def machine_memory_gb() -> float:
    """Return the memory that a process can use (GB): the machine's, or the limit of its container."""
    import psutil

    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # no such control group, or "max"
        total = min(total, int(_CGROUP_LIMIT.read_text()))
    return total / 1e9


def available_memory_gb() -> float:
    """Return the memory that new processes can use without swapping (GB), within the limit of the container."""
    import psutil

    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        used = int((_CGROUP / "memory.current").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cached = int(statistics.get("inactive_file", 0))  # files that the kernel drops when memory is needed
        available = min(available, int(_CGROUP_LIMIT.read_text()) - used + cached)
    return available / 1e9
