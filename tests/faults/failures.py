"""A whole training run in which one call that changes a file fails, for each of its calls or for some of them.

    python -m tests.faults.failures --report failures.md          runs itself with the shim

The run has two steps with a checkpoint after each, of which the second replaces the first, an evaluation, samples, a
picture, a report and a log.
"""

from __future__ import annotations

import argparse
import errno
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gpt2x.checkpoint import list_checkpoints, open_checkpoint
from tests.faults import starts
from tests.faults.enumeration import ERRORS, MAY_MEET
from tests.faults.shim import Call, Fault, build, calls_of, preloaded
from tests.support.small_runs import small

# each tensor is a call of every save, and each save the same calls, so few of both are enough
RUN = ["model.num_layers=1", "trainer.max_steps=2", "trainer.checkpoint_every_steps=1", "trainer.keep_last=1",
       "trainer.keep_best=false", "trainer.sample_prompts=['the cat']", "generation.max_new_tokens=4",
       "generation.min_new_tokens=1"]  # fmt: skip
LARGE = ("checkpoints", "config.yaml", ".config.yaml", ".owner")  # without these there is no run
END_S = 600.0


@dataclass
class Report:
    """What happened."""

    num_calls: int = 0
    runs: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def markdown(self) -> str:
        """Return the report as Markdown."""
        lines = [
            f"| failing calls of a whole run | {self.num_calls} calls |",
            "|---|---|",
            f"| runs | {', '.join(f'{count} {name}' for name, count in self.runs.items())} |",
            f"| statuses | {', '.join(f'{status}: {count}' for status, count in self.statuses.items())} |",
            f"| findings | {len(self.findings)} |",
            f"| wall | {self.seconds:.0f} s |",
        ]
        return "\n".join([*lines, "", *(f"- {finding}" for finding in self.findings)]) + "\n"


class Failures:
    """The runs, below a folder."""

    def __init__(self, folder: Path):
        self.folder, self.report, self.number = folder, Report(), 0
        (folder / "cwd").mkdir(parents=True)

    def run(self, fault: Fault) -> tuple[int, str, Path, list[Call]]:
        """Train with a fault -> status, what was printed, the outputs, the calls."""
        self.number += 1
        outputs = self.folder / f"outputs-{self.number}"
        trace, printed = self.folder / f"trace-{self.number}", self.folder / "printed"
        kept = [option for option in small(self.folder) if not option.startswith(("paths.outputs", "trainer.sample"))]
        options = [*kept, *RUN, f"paths.outputs={outputs}", f"hydra.run.dir={outputs}/run"]
        started = starts.fork(
            options, self.folder / "cwd", printed, lambda: fault.arm(outputs, self.folder / "cwd", trace=trace)
        )
        return started.wait(END_S), started.printed(), outputs, calls_of(trace)

    def calls(self) -> list[Call]:
        """Train undisturbed, twice, since the first run fills the caches -> the calls of the second."""
        for _ in range(2):
            status, printed, _, calls = self.run(Fault())
            assert status == 0, printed
        self.report.num_calls = len(calls)
        return calls

    def fail(self, fault: Fault, call: Call) -> None:
        """Let a call fail, and check what is left."""
        status, printed, outputs, calls = self.run(fault)
        cause, name = os.strerror(fault.error), Path(call.path).relative_to(self.folder)
        at = f"{fault} ({call.name} {Path(*name.parts[1:])})"
        self.report.runs[errno.errorcode[fault.error] + (" and on" if fault.is_lasting else "")] += 1
        self.report.statuses[status] += 1
        found = self.report.findings
        if "Traceback" in printed:
            found.append(f"{at}: a traceback: {printed.strip().splitlines()[-1][:200]}")
        elif status not in (0, 2):
            found.append(f"{at}: status {status}: {printed[-200:]}")
        elif status == 2 and cause not in printed:
            found.append(f"{at}: the cause is not in the message: {printed.strip().splitlines()[-1][:200]}")
        has_begun = any(Path(each.path).name == "metrics.jsonl" for each in calls if each.number < call.number)
        if status and has_begun and not fault.is_lasting and not any(part.startswith(LARGE) for part in name.parts[2:]):
            found.append(f"{at}: a small file has ended the run: {printed.strip().splitlines()[-1][:200]}")
        names = [Path(each.detail) for each in calls if each.name == "rename" and each.number < call.number]
        done = [path for path in names if path.parent.name == "checkpoints" and path.name.startswith("step_")]
        try:
            complete = list_checkpoints(outputs / "run")
            for path in complete:
                open_checkpoint(path).verify()
            if done and not complete:
                found.append(f"{at}: no checkpoint is left of {len(done)}")
        except Exception as error:
            found.append(f"{at}: a checkpoint is damaged: {error}")


def chosen(calls: list[Call], number: int | None) -> list[Call]:
    """Return `number` calls: first one of each name, file and step of the run, then evenly among the others."""
    if number is None or number >= len(calls):
        return calls
    kinds: dict[tuple[str, str], Call] = {}
    for call in calls:
        kinds.setdefault((call.name, "".join(char for char in Path(call.path).name if not char.isdigit())), call)
    first = list(kinds.values())
    rest = [call for call in calls if call not in first]
    step = max(1, len(rest) // max(1, number - len(first)))
    return sorted([*first, *rest[::step]][:number], key=lambda call: call.number)


def main(arguments: list[str] | None = None) -> None:
    """Train again and again, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, help="how many of the calls fail with the first error; all by default")
    parser.add_argument("--few", type=int, default=60, help="how many fail with the other errors, and from then on")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th of these runs, for N processes side by side")
    parser.add_argument("--errors", nargs="*", default=["ENOSPC"], help="names, such as ENOSPC EIO EROFS EACCES")
    parser.add_argument("--seconds", type=float, default=1e9, help="end after the run that is tried then")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    if "LD_PRELOAD" not in os.environ:
        with tempfile.TemporaryDirectory(prefix="shim-") as folder:
            command = [sys.executable, "-m", "tests.faults.failures", *(arguments or sys.argv[1:])]
            sys.exit(subprocess.run(command, env=preloaded(build(Path(folder))), check=False).returncode)
    errors = [getattr(errno, name) for name in options.errors]
    assert set(errors) <= set(ERRORS)
    starts.import_all()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="failures-") as name:
        failures = Failures(Path(name).resolve() / "files")
        calls = failures.calls()
        faults = [(call, errors[0], False) for call in chosen(calls, options.calls)]
        few = chosen(calls, options.few)
        faults += [(call, errors[0], True) for call in few]
        faults += [(call, error, False) for error in errors[1:] for call in few]
        part, parts = map(int, options.part.split("/"))
        for call, error, is_lasting in faults[part - 1 :: parts]:
            if call.kind in MAY_MEET[error] and time.monotonic() - started < options.seconds:
                before = len(failures.report.findings)
                failures.fail(Fault(call.number, "fail", error, is_lasting), call)
                sys.stdout.writelines(f"{finding}\n" for finding in failures.report.findings[before:])
                if failures.number % 20 == 0:
                    sys.stdout.write(f"{failures.number} runs, {len(failures.report.findings)} findings\n")
                sys.stdout.flush()
    failures.report.seconds = time.monotonic() - started
    sys.stdout.write(failures.report.markdown())
    if options.report:
        options.report.write_text(failures.report.markdown(), encoding="utf-8")
    sys.exit(bool(failures.report.findings))


if __name__ == "__main__":
    main()
