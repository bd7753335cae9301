"""A run of an hour: `python -m tests.faults.soak --minutes 60 --report soak.md`.

It trains, validates, samples, saves and tracks as often as it can, so that whatever is not given back adds up. Memory,
open files and threads of the run and of MLflow's mirror are read every few seconds from /proc; the report has the slope
of a least-squares line through all readings after the first tenth, with its standard error, in units per hour. It ends
with an error if what the line gains in the time exceeds `MAY_GAIN`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.faults import starts
from tests.support.small_runs import small

RUN = ["trainer.max_steps=100000000", "trainer.checkpoint_every_steps=100", "trainer.eval_every_steps=100",
       "trainer.sample_prompts=['the cat']", "generation.max_new_tokens=8", "generation.min_new_tokens=1",
       "trainer.keep_last=2", "tracker=mlflow", "schedule=constant"]  # fmt: skip
READ_S = 10.0
MAY_GAIN = {"memory MB": 64.0, "files": 4.0, "threads": 2.0}  # metrics.jsonl's size is no memory of the run


def reading(pid: int) -> dict[str, float]:
    """Return resident memory (MB), open files and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "memory MB": int(status["VmRSS"].split()[0]) / 1024,
        "files": float(len(os.listdir(f"/proc/{pid}/fd"))),
        "threads": float(status["Threads"]),
    }


def slope(times: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the slope of a least-squares line and its standard error (times: [n] s; values: [n]; per hour)."""
    centred = times - times.mean()
    gradient = centred @ values / (centred @ centred)
    rest = values - values.mean() - gradient * centred
    error = np.sqrt(rest @ rest / (len(times) - 2) / (centred @ centred))
    return 3600 * float(gradient), 3600 * float(error)


def soak(folder: Path, seconds: float) -> tuple[str, bool]:
    """Run for that long -> the report, and whether all stayed as it was."""
    options = [option for option in small(folder) if not option.startswith(("trainer.sample", "tracker"))]
    (folder / "cwd").mkdir()
    run = starts.spawn([*options, *RUN], folder / "cwd", folder / "printed")
    started, readings = time.monotonic(), []
    while time.monotonic() - started < seconds:
        time.sleep(READ_S)
        if run.poll() is not None:
            raise AssertionError(f"the run has ended with status {run.status}: {run.printed()[-1000:]}")
        mirrors = [pid for pid in starts.family_of(run.pid)[1:] if starts.session_of(pid) == pid]
        names = dict(zip(("the run", "the mirror"), (run.pid, *mirrors), strict=False))
        readings.append((time.monotonic() - started, {name: reading(pid) for name, pid in names.items()}))
    os.kill(run.pid, signal.SIGTERM)
    status = run.wait(120.0)
    (metrics,) = (folder / "outputs").rglob("metrics.jsonl")
    steps = sum(1 for _ in metrics.open())
    lines = [
        f"{seconds / 60:.0f} minutes, {len(readings)} readings, {steps} lines of metrics, "
        f"{len(list(metrics.parent.glob('checkpoints/step_*')))} checkpoints kept, status {status} after SIGTERM",
        "",
        "| process | | first | last | per hour |",
        "|---|---|---|---|---|",
    ]
    is_flat = status == 128 + signal.SIGTERM
    later = [each for each in readings if each[0] > seconds / 10]
    for name in ("the run", "the mirror"):
        for key, may_gain in MAY_GAIN.items():
            points = np.array([(at, values[name][key]) for at, values in later if name in values])
            gain, error = slope(points[:, 0], points[:, 1])
            lines.append(f"| {name} | {key} | {points[0, 1]:.1f} | {points[-1, 1]:.1f} | {gain:+.2f} ± {error:.2f} |")
            is_flat = is_flat and gain * (points[-1, 0] - points[0, 0]) / 3600 < may_gain
    return "\n".join(lines) + "\n", is_flat


def main() -> None:
    """Run, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        report, is_flat = soak(Path(name).resolve(), 60 * options.minutes)
    sys.stdout.write(report)
    if options.report:
        options.report.write_text(report, encoding="utf-8")
    sys.exit(not is_flat)


if __name__ == "__main__":
    main()
