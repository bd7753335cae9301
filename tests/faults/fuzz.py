"""`python -m tests.faults.fuzz --minutes N --report FILE`: spoil valid files of each format, and read them.

Batches run in forks with limits of memory and time, so that a crash, an abort or a hang is observed and ends only its
batch. Each execution is the mutation of a number, which repeats it:

    python -m tests.faults.fuzz --repeat "torch: pytorch_model.bin" 4711
"""

from __future__ import annotations

import argparse
import json
import logging
import mmap
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from gpt2x.errors import UserError
from tests.faults import seeds
from tests.faults.hostile_entries import answer
from tests.faults.mutations import TARGETS, Target, spoil
from tests.faults.watched import ACCEPTED, CRASH, HANG, MESSAGE, TRACEBACK, watch

BATCH, SECONDS, PEAK_MB = 200, 60, 300


def run_batch(target: Target, first: int, root: Path, state: mmap.mmap) -> Counter[str]:
    """Read `BATCH` mutations of a target in a fork; `state` holds the number of the current one and the counts."""
    folder = root / "spoilt"

    def read_all() -> None:
        original = (folder / target.file).read_bytes()
        for number in range(first, first + BATCH):
            state[0:8] = struct.pack("<Q", number)
            try:
                answer(target.entry, spoil(target, folder, original, number))
                at = 8
            except UserError:
                at = 16
            state[at : at + 8] = struct.pack("<Q", struct.unpack("<Q", state[at : at + 8])[0] + 1)

    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    seeds.copy(target.seed, folder)
    state[0:24] = bytes(24)
    end = watch(read_all, SECONDS)
    number, accepted, messages = struct.unpack("<3Q", state[0:24])
    counts = Counter({ACCEPTED: accepted, MESSAGE: messages})
    fault = end.end if end.end in (TRACEBACK, CRASH, HANG) else f"executed {end.executed}" if end.executed else ""
    if not fault and end.peak_mb > PEAK_MB:
        fault = f"{end.peak_mb:.0f} MB"
    if fault:
        counts[fault.split()[0] if fault in (TRACEBACK, CRASH, HANG) else fault] += 1
        print(f"{target.name} {target.entry} number {number}: {fault}: {end.text[:300]}", flush=True)
    return counts


def fuzz(minutes: float, start: int, only: str) -> dict[str, dict[str, object]]:
    """Fuzz all targets in turn for some minutes; return counts, seconds and faults by format and entry point."""
    chosen = [target for target in TARGETS if only in f"{target.entry} {target.name}"]
    report: dict[str, dict[str, object]] = {}
    state, until, first = mmap.mmap(-1, 24), time.monotonic() + 60 * minutes, start
    totals = {target: Counter[str]() for target in chosen}
    seconds = dict.fromkeys(chosen, 0.0)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        while time.monotonic() < until:
            for target in chosen:
                begin = time.monotonic()
                totals[target] += run_batch(target, first, Path(root), state)
                seconds[target] += time.monotonic() - begin
                if time.monotonic() >= until:
                    break
            first += BATCH
    for target in chosen:
        facts = {"executions": totals[target].total(), "seconds": round(seconds[target], 1)}
        report[f"{target.name} by {target.entry}"] = facts | totals[target]
    return report


def main(arguments: list[str]) -> int:
    """Fuzz, print the table, write the report; return 1 if a fault was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--report", type=Path, help="a JSON file of the counts")
    parser.add_argument("--start", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--only", default="", help="formats or entry points with this text")
    parser.add_argument("--repeat", nargs=2, metavar=("FORMAT", "NUMBER"), help="run one mutation in this process")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    if options.repeat:
        target = next(one for one in TARGETS if options.repeat[0] in f"{one.name} {one.entry}")
        with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
            folder = seeds.copy(target.seed, Path(root) / "spoilt")
            answer(target.entry, spoil(target, folder, (folder / target.file).read_bytes(), int(options.repeat[1])))
        return 0
    for kind in {target.seed for target in TARGETS}:
        seeds.kept(kind)
    report = fuzz(options.minutes, options.start, options.only)
    seeds.remove()
    for name, counts in report.items():
        print(f"{name:50} " + "  ".join(f"{key} {value}" for key, value in counts.items()))
    executions = sum(int(str(counts["executions"])) for counts in report.values())
    wrong = {
        name: counts for name, counts in report.items() if set(counts) - {"executions", "seconds", ACCEPTED, MESSAGE}
    }
    print(
        f"\n{executions} executions of {len(report)} formats in {options.minutes:g} minutes; with faults: {len(wrong)}"
    )
    if options.report:
        options.report.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
