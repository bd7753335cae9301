"""Seconds from the command to the first training step: `python benchmarks/startup.py --out FILE`.

Runs the commands that a user types, each in fresh folders for outputs and cache, then again with that cache.
benchmarks/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side

COMMANDS = {
    "default": [],
    "gpt2_small": [
        "model=gpt2_small",
        "trainer.seq_len=512",
        "trainer.global_batch_size=2",
        "trainer.micro_batch_size=2",
    ],
}
STARTS = ("first", "second")  # the second finds the first's cache: tokenizer, blocks, whatever else is kept there
PHASES = ("before", "compile", "step")


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(
        __doc__, 5, "times that each command is started, with an empty and with a filled cache"
    )
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--timeout", type=int, default=900, help="seconds after which a start has failed")
    return side_by_side.parse(parser)


def start(command: list[str], folder: Path, outputs: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds until the first step's metrics were there, and what they say of them. The run is ended then."""
    threads = str(options.threads)
    environment = os.environ | {
        "GPT2X_OUTPUTS": str(folder / outputs), "GPT2X_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads,
    }  # fmt: skip
    log = folder / f"{outputs}.log"
    started = time.time()
    process = subprocess.Popen(
        [sys.executable, str(side_by_side.ROOT / "train.py"), *command], cwd=folder, env=environment,
        stdout=log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        row = first_row(process, folder / outputs, started + options.timeout)
    finally:
        end(process)
    if row is None:
        reason = f"after {options.timeout} s" if process.returncode in (None, -signal.SIGKILL) else "before it ended"
        raise SystemExit(f"train.py {' '.join(command)} made no step {reason}:\n{log.read_text()[-2000:]}")
    # every time that the run reports; what it does before it compiles is the rest
    reported = {key: value for key, value in row.items() if key.startswith("perf/") and key.endswith("_time_s")}
    total = row["time"] - started
    compile_s, step_s = reported.get("perf/compile_time_s", 0.0), reported.get("perf/step_time_s", 0.0)
    return {"total": total, "before": total - compile_s - step_s, "compile": compile_s, "step": step_s, **reported}


def first_row(process: subprocess.Popen, outputs: Path, deadline: float) -> dict[str, Any] | None:
    """The first whole line of metrics.jsonl; None where the run ends without, or takes too long."""
    while time.time() < deadline:
        is_over = process.poll() is not None
        for path in outputs.rglob("metrics.jsonl"):
            line, newline, _ = path.read_text(encoding="utf-8").partition("\n")
            if newline:
                return json.loads(line)
        if is_over:
            return None
        time.sleep(0.05)
    return None


def end(process: subprocess.Popen) -> None:
    """End a run and what it started: as Ctrl-C does, then by force."""
    for number, patience in ((signal.SIGINT, 20), (signal.SIGKILL, 20)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return


def compare(options: argparse.Namespace) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Commands in turn, so that whatever else the machine does hits all alike."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {
        name: {which: [] for which in STARTS} for name in options.commands
    }
    for index in range(options.rounds):
        for name in options.commands:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                for which in STARTS:
                    found[name][which].append(start(COMMANDS[name], Path(folder), which, options))
            seconds = ", ".join(f"{which} start {runs[-1]['total']:.1f} s" for which, runs in found[name].items())
            print(f"round {index + 1} of {options.rounds}: {name}: {seconds}", flush=True)
    return found


def summary(found: dict[str, dict[str, list[dict[str, float]]]], options: argparse.Namespace) -> dict[str, Any]:
    result: dict[str, Any] = {"starts": {}}
    for name, starts in found.items():
        command = " ".join(["python train.py", *COMMANDS[name]])
        result["starts"][name] = {"command": command}
        for which, runs in starts.items():
            keys = sorted(set.intersection(*(set(run) for run in runs)))
            result["starts"][name][which] = {
                "seconds": side_by_side.spread([run["total"] for run in runs]),
                "phases": {key: side_by_side.spread([run[key] for run in runs]) for key in keys if key != "total"},
            }
            result[f"first_step_s_{name}_{which}"] = result["starts"][name][which]["seconds"]["median"]
    return result | side_by_side.facts(options)


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, starts in result["starts"].items():
        for which in STARTS:
            total, phases = starts[which]["seconds"], starts[which]["phases"]
            medians = [f"{phases[phase]['median']:.1f}" for phase in PHASES]
            rows.append((f"{name}, {which}", f"{total['median']:.1f}", side_by_side.quartiles(total, 1), *medians))
    columns = ("", "seconds", "quartiles", "before compiling", "compiling", "first step")
    side_by_side.table("From the command to the first step", columns, rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """A bar a start, of its phases' medians."""
    plt = side_by_side.pyplot()
    labels = [f"{name}\n{which} start" for name in result["starts"] for which in STARTS]
    starts = [found[which] for found in result["starts"].values() for which in STARTS]
    figure, axes = plt.subplots(figsize=(7, 0.9 + 0.6 * len(labels)), layout="constrained")
    left = [0.0] * len(labels)
    for phase, colour in zip(PHASES, ("#8c8c8c", "#2a6f97", "#a9d6e5"), strict=True):
        widths = [found["phases"][phase]["median"] for found in starts]
        axes.barh(labels, widths, left=left, height=0.6, label=phase, color=colour)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    for row, found in enumerate(starts):
        axes.text(left[row], row, f" {found['seconds']['median']:.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds from the command to the first step (medians)")
    axes.legend(ncols=len(PHASES), fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = arguments()
    result = summary(compare(options), options)
    side_by_side.write(result, options.out)
    show(result)
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
