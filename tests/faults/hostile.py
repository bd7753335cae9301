"""`python -m tests.faults.hostile`: give every hostile input to the entry point that reads it, and print the table.

An input may be answered with one message or read without harm. It may not end in a traceback or a crash, run code,
take more than 300 MB above the start, or more than some seconds.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.faults import seeds
from tests.faults.hostile_directories import DIRECTORIES
from tests.faults.hostile_entries import answer
from tests.faults.hostile_texts import TEXTS
from tests.faults.hostile_weights import SOURCES, Case
from tests.faults.watched import ACCEPTED, CRASH, HANG, MESSAGE, TRACEBACK, Outcome, watch

CASES: list[Case] = [*SOURCES, *DIRECTORIES, *TEXTS]
PEAK_MB, SECONDS = 300, 20


def outcome(case: Case, folder: Path, seconds: float = SECONDS) -> Outcome:
    """Write an input, and give it to its entry point in a fork."""
    folder.mkdir()
    try:
        given = case.write(folder)
        return watch(lambda: answer(case.entry, given), seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def faults(case: Case, end: Outcome) -> list[str]:
    """Return what an input did that it may not."""
    found = [end.end] if end.end in (TRACEBACK, CRASH, HANG) else []
    if end.end == ACCEPTED and not case.is_accepted:
        found.append("accepted without a message")
    if end.executed:
        found.append(f"executed {end.executed}")
    if end.peak_mb > PEAK_MB:
        found.append(f"{end.peak_mb:.0f} MB")
    return found


def main(arguments: list[str]) -> int:
    """Print a row per input and the totals; return 1 if one did what it may not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="inputs whose entry point or name has this text")
    parser.add_argument("--faults", action="store_true", help="print only rows with a fault")
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    chosen = [case for case in CASES if options.only in f"{case.entry} {case.name}"]
    for kind in seeds.SEEDS:
        seeds.kept(kind)
    ends: list[tuple[Case, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="hostile-") as root:
        for number, case in enumerate(chosen):
            end = outcome(case, Path(root) / str(number))
            ends.append((case, end))
            wrong = faults(case, end)
            if wrong or not options.faults:
                said = " ".join(end.text.replace(root, "…").split())[:150] or end.end
                print(f"{case.entry:15} {case.name[:60]:60} {end.peak_mb:6.0f} MB {end.seconds:5.1f} s  "
                      f"{'FAULT ' + ', '.join(wrong) + ': ' if wrong else ''}{said}", flush=True)  # fmt: skip
    seeds.remove()
    print(totals(ends))
    return 1 if any(faults(case, end) for case, end in ends) else 0


def totals(ends: list[tuple[Case, Outcome]]) -> str:
    """Return one line of what all inputs did."""
    counts = Counter(end.end for _, end in ends)
    parts = [
        f"{len(ends)} inputs of {len({case.entry for case, _ in ends})} entry points",
        f"{counts[MESSAGE]} answered with one message",
        f"{counts[ACCEPTED]} read without harm",
        *(f"{kind}s {counts[kind]}" for kind in (TRACEBACK, CRASH, HANG)),
        f"executed {sum(bool(end.executed) for _, end in ends)}",
        f"peak {max(end.peak_mb for _, end in ends):.0f} MB above the start",
        f"longest {max(end.seconds for _, end in ends):.1f} s",
        f"faults {sum(bool(faults(case, end)) for case, end in ends)}",
    ]
    return "\n" + ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
