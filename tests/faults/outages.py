"""What a failing MLflow costs a run, and what it loses: `python -m tests.faults.outages [MODE…] [--steps N]`.

Each mode is a run in a process of its own, with the mirror's process. Its steps are products of matrices (like
MindSpore's, they need all cores and do not hold Python's lock) and work in Python. To measure the cost, the mirror is
stopped (SIGSTOP) in every second block of steps: the cost is the median, over pairs of neighbouring blocks, of how much
longer a step takes beside the mirror. On a busy machine that says little, so the mirror's use of the processor is there
as well, as a share of that of the run: the most that the mirror can cost if no core ever waits. Both are measured once
the mirror has reached MLflow, or from half of the steps on; what its start takes (an import) is a column of its own.
What the calls of the tracker take is measured, too. Afterwards the fault ends, `gpt2x sync` sends the rest, and what
MLflow has is compared with metrics.jsonl.

The short form, which CI runs, is tests/tracking/test_outages.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from gpt2x.config import TrackerConfig
from gpt2x.tracking import MetricsLog, RunInfo, jsonl
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_sync import sync
from gpt2x.tracking.trackers.mlflow import MlflowTracker
from tests.support.mlflow_server import MlflowServer

BLOCK = 20  # steps with the mirror, then as many without it
NUM_METRICS = 14
LOCK_S = 30.0


def on(part, wrong):
    """A fault of each request whose path has a part."""
    return lambda path, request: wrong if part in path else None


def of_one_metric(path, request):
    """A fault of each request with a value of one metric."""
    return 400 if any(each["key"] == "train/m3" for each in request.get("metrics", [])) else None


FAULTS = {
    "healthy server": on("", None),
    "dead server": None,
    "black hole": on("", "hang"),
    "slow server, 5 s": on("", 5.0),
    "HTTP 500": on("", 500),
    "HTTP 503": on("", 503),
    "HTTP 429": on("", 429),
    "400 for one metric": of_one_metric,
    "500 for metrics only": on("log-batch", 500),
    "artifacts hang": on("mlflow-artifacts", "hang"),
    "run deleted": on("", None),
}
SQLITE = ("healthy sqlite", "locked sqlite, 30 s")


def train(run_dir: Path, uri: str, num_steps: int) -> None:
    """Be a run; write how long its steps took to `times.json`."""
    tracker = MlflowTracker(TrackerConfig(name="mlflow", system_metrics=False, uri=uri), run_dir.parent)
    log = MetricsLog(run_dir / "metrics.jsonl")
    matrix = np.random.default_rng(0).standard_normal((700, 700)).astype(np.float32) / 26
    tracker.start(RunInfo("pretrain", "a/b", run_dir, tags={"run_dir": str(run_dir)}))
    (run_dir / "config.yaml").write_text("seed: 1\n")
    tracker.log_artifact(run_dir / "config.yaml")
    steps, first = [], None
    for step in range(1, num_steps + 1):
        is_stopped = step // BLOCK % 2 == 1
        if step % BLOCK == 0 and tracker._mirror is not None:
            os.kill(tracker._mirror.pid, signal.SIGSTOP if is_stopped else signal.SIGCONT)
        started = time.perf_counter()
        for _ in range(4):
            matrix = np.tanh(matrix @ matrix)
            sum(number * number for number in range(4000))  # what Python does between graphs
        computed = time.perf_counter()
        line = log.append(step, {f"train/m{number}": float(matrix[number, 0]) + step for number in range(NUM_METRICS)})
        appended = time.perf_counter()
        tracker.log_metrics(*line)
        if step % BLOCK == BLOCK // 2:
            tracker.set_tags({"checkpoint.newest": f"step_{step}"})
        ended = time.perf_counter()
        if first is None and (tracker._ids is not None or step == num_steps // 2):
            first, begun = step, (cpu_s(os.getpid()), mirror_cpu_s(tracker))
        steps.append((step // BLOCK, is_stopped, computed - started + ended - appended, ended - appended))
    used = cpu_s(os.getpid()) - begun[0], mirror_cpu_s(tracker) - begun[1]
    with contextlib.suppress(ProcessLookupError, AttributeError):
        os.kill(tracker._mirror.pid, signal.SIGCONT)
    started = time.perf_counter()
    tracker.finish("FINISHED")
    (run_dir / "times.json").write_text(
        json.dumps({"steps": steps[first:], "cpu_s": [*used, begun[1]], "finish": time.perf_counter() - started})
    )


def cpu_s(pid: int) -> float:
    """Return the seconds that a process has used the processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mirror_cpu_s(tracker: MlflowTracker) -> float:
    """Return the seconds of the mirror."""
    return 0.0 if tracker._mirror is None else cpu_s(tracker._mirror.pid)


def cost_of(steps: list) -> tuple[float, float, float, float]:
    """Return a step (ms), the cost of the mirror with its standard error, and that of the tracker's calls (shares)."""
    blocks: dict[int, list[float]] = {}
    for block, _, seconds, _ in steps:
        blocks.setdefault(block, []).append(seconds)
    means = {block: statistics.median(values) for block, values in blocks.items() if len(values) == BLOCK}
    ratios = [
        means[block] / means[near] - 1
        for block in means
        for near in (block - 1, block + 1)
        if block % 2 == 0 and block > 1 and near in means
    ]
    step = statistics.median(means.values())
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    calls = sum(call for *_, call in steps) / sum(seconds for *_, seconds, _ in steps)
    return 1000 * step, statistics.median(ratios), error, calls


def run_mode(mode: str, folder: Path, num_steps: int) -> list[str]:
    """Run a mode; return the row of the table."""
    run_dir = folder / "run"
    run_dir.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        server, locking = None, threading.Thread(target=hold_lock, args=[folder / "mlflow.db"], daemon=True)
        if mode in SQLITE:
            uri = f"sqlite:///{folder}/mlflow.db"
            make_store(folder)
            if mode != "healthy sqlite":
                locking.start()
        else:
            server = stack.enter_context(MlflowServer())
            server.fault, uri = FAULTS[mode] or on("", None), server.uri
            if mode == "dead server":
                with socket.create_server(("127.0.0.1", 0)) as probe:
                    uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "-m", "tests.faults.outages", "--train", str(run_dir), uri]
        run = subprocess.Popen([*command, "--steps", str(num_steps)], stdout=subprocess.PIPE, text=True)
        if mode == "run deleted":
            delete_run(server, run_dir)
        printed = run.communicate()[0].splitlines()
        times = json.loads((run_dir / "times.json").read_text())
        shown_before = state_of(run_dir, server)
        if mode == "dead server":
            RunRecord.load(run_dir).update(run_dir, uri=server.uri)
        if server is not None:
            server.fault = on("", None)
        if locking.is_alive():
            locking.join()
        sync(run_dir)
        lost, doubled = compare(run_dir, server)
        said = [line for line in printed if line.startswith("warning:")]
        step, cost, error, calls = cost_of(times["steps"])
        share = times["cpu_s"][1] / times["cpu_s"][0]
        sizes = (
            f"{step:.0f}",
            f"{100 * cost:+.1f} ± {100 * error:.1f}",
            f"{100 * share:.2f}",
            f"{times['cpu_s'][2]:.1f}",
            f"{100 * calls:.2f}",
            f"{times['finish']:.1f}",
        )
        states = f"{shown_before} -> {state_of(run_dir, server)}"
        return [mode, *sizes, str(lost), str(doubled), states, " / ".join(text[9:150] for text in said) or "-"]


def make_store(folder: Path) -> None:
    """Create a store, so that a lock can be had."""
    from gpt2x.tracking.mlflow_store import import_mlflow
    from gpt2x.tracking.sqlite_store import create_store

    import_mlflow()
    create_store(folder / "mlflow.db")


def hold_lock(file: Path) -> None:
    """Lock a store from the run's first steps on."""
    time.sleep(2.0)
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(LOCK_S)
        connection.rollback()


def delete_run(server: MlflowServer, run_dir: Path) -> None:
    """Delete the MLflow run as soon as it has values."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for run_id, run in list(server.runs.items()):
            if run["metrics"]:
                del server.runs[run_id]
                return
        time.sleep(0.1)


def state_of(run_dir: Path, server: MlflowServer | None) -> str:
    """The state that MLflow shows."""
    run_id = RunRecord.load(run_dir).run_id
    if run_id is None:
        return "no run"
    if server is not None:
        return server.runs[run_id]["info"]["status"]
    with contextlib.closing(sqlite3.connect(run_dir.parent / "mlflow.db")) as store:
        return store.execute("select status from runs where run_uuid = ?", [run_id]).fetchone()[0]


def compare(run_dir: Path, server: MlflowServer | None) -> tuple[int, int]:
    """Return the values of metrics.jsonl that MLflow lacks, and the steps of a metric that it has more than once."""
    lines = jsonl.read_after(run_dir / "metrics.jsonl", 0, 2**30)[0]
    expected = {(key, step) for step, _, values in lines for key in values}
    run_id = RunRecord.load(run_dir).run_id
    if server is not None:
        counts = {point: len(values) for point, values in server.points(run_id).items()}
    else:
        with contextlib.closing(sqlite3.connect(run_dir.parent / "mlflow.db")) as store:
            query = "select key, step, count(*) from metrics where run_uuid = ? group by key, step"
            counts = {(key, step): count for key, step, count in store.execute(query, [run_id])}
    return len(expected - counts.keys()), sum(count > 1 for count in counts.values())


def main() -> None:
    """Print a row for each mode."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help=", ".join([*SQLITE, *FAULTS]))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--train", nargs=2, metavar=("RUN_DIR", "URI"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(Path(arguments.train[0]), arguments.train[1], arguments.steps)
        return
    columns = (
        "step ms",
        "mirror costs %",
        "mirror's CPU %",
        "its start CPU s",
        "calls cost %",
        "end s",
        "lost",
        "doubled",
    )
    print(" | ".join(["mode", *columns, "state -> after sync", "said"]), flush=True)
    for mode in arguments.modes or [*SQLITE, *FAULTS]:
        with tempfile.TemporaryDirectory() as folder:
            print(" | ".join(run_mode(mode, Path(folder), arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
