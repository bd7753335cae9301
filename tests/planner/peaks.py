"""Measure the peak resident memory of each process of a real training run, from /proc.

`python -m tests.planner.peaks OVERRIDE...` prints it (GB of 1e9 bytes, by rank).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.small_runs import ROOT, corpus, run_dirs, small

NUM_STEPS = 3  # the pools of MindSpore have grown to their size by then


def peaks_gb(directory: Path, *overrides: str, timeout_s: float = 300) -> dict[int, float]:
    """Return rank -> peak resident memory after three updates; the run is ended before it saves or evaluates."""
    path = corpus(directory)
    path.write_text("\n".join([path.read_text(encoding="utf-8")] * 20), encoding="utf-8")
    command = [sys.executable, str(ROOT / "train.py"), *small(directory), "trainer.max_steps=1000", *overrides]
    log = (directory / "log.txt").open("w+", encoding="utf-8")
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    peaks: dict[int, float] = {}
    try:
        end = time.monotonic() + timeout_s
        while process.poll() is None and time.monotonic() < end:
            for worker in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error, OSError, StopIteration):
                    peaks |= peak_of(worker)
            if num_steps(directory) >= NUM_STEPS:
                return peaks
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.seek(0)
    raise AssertionError(f"{overrides}: not {NUM_STEPS} steps in {timeout_s} s:\n{log.read()[-3000:]}")


def peak_of(worker: psutil.Process) -> dict[int, float]:
    """Return {rank: peak} of a process that runs MindSpore; a process without a rank is the only one, rank 0."""
    environment = worker.environ()
    if environment.get("MS_ROLE") == "MS_SCHED" or "python" not in worker.name():
        return {}
    status = Path(f"/proc/{worker.pid}/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return {int(environment.get("RANK_ID", 0)): int(line.split()[1]) * 1024 / 1e9}


def num_steps(directory: Path) -> int:
    """Return the number of updates that the newest run has logged."""
    runs = run_dirs(directory)
    return len((runs[-1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) if runs else 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        print({rank: round(peak, 3) for rank, peak in sorted(peaks_gb(Path(folder), *sys.argv[1:]).items())})
