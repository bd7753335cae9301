"""Every call of an operation that changes the file system is killed, torn, followed by a loss of power, or fails.

The operation runs in a child of a process that has imported everything (fork, milliseconds each), on a fresh copy of
the files that it begins with. `python -m tests.faults.enumeration` runs in a process that has the shim.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from gpt2x.errors import RunError, UserError
from tests.faults.shim import Call, Fault, calls_of, disarm, lose_unsynced

KILLS = ("kill", "tear", "power")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EMFILE)
ONE_ERROR = (errno.ENOSPC,)
REJECTED = 3  # status of a child whose operation raised an error that a user understands
MAY_MEET = {
    errno.ENOSPC: ("create", "write", "name", "sync", "close"),
    errno.EDQUOT: ("create", "write", "name", "sync", "close"),
    errno.EROFS: ("create", "open", "name", "remove", "meta"),
    errno.EACCES: ("create", "open", "name", "remove", "meta"),
    errno.EMFILE: ("create", "open"),
    errno.EIO: ("create", "open", "write", "name", "remove", "sync", "close", "meta"),
}


class Operation(Protocol):
    """What is interrupted, and what has to hold then."""

    name: str
    is_power_safe: bool  # what it wrote is on the disk when it says so

    def begin(self, folder: Path) -> None:
        """Write the files that it begins with."""

    def act(self, folder: Path) -> None:
        """Do it."""

    def intact(self, folder: Path) -> None:
        """Fail if something is lost, after `act` was interrupted anywhere."""

    def complete(self, folder: Path) -> None:
        """Fail if `act` has not done everything, or has left something, after it was repeated."""


@dataclass
class Outcome:
    """What was asked of an operation, and what did not hold."""

    operation: str
    num_calls: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0


def child(work: Callable[[], None], report: Path) -> int:
    """Call `work` in a child -> its status, as `subprocess` has it; what it raised is written to `report`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            status = 0
        except (UserError, RunError) as error:
            disarm()
            report.write_text(str(error))
            status = REJECTED
        except BaseException:
            disarm()
            report.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Enumeration:
    """The runs of one operation, in a folder of its own."""

    def __init__(self, operation: Operation, folder: Path):
        self.operation, self.folder = operation, folder
        self.template, self.work = folder / "template", folder / "work"
        self.trace, self.report = folder / "trace", folder / "report"
        self.outcome = Outcome(operation.name)
        self.template.mkdir(parents=True)
        # what it begins with is at the path at which it is used, since files may hold their path
        self.work.mkdir()
        self.must(lambda: operation.begin(self.work), "begin")
        self.template.rmdir()
        shutil.copytree(self.work, self.template, symlinks=True)

    def must(self, work: Callable[[], None], what: str) -> bool:
        """Call `work` in a child; note a finding if it fails."""
        self.report.unlink(missing_ok=True)
        status = child(work, self.report)
        if status:
            said = self.report.read_text() if self.report.exists() else f"status {status}"
            lines = said.strip().splitlines()
            where = [line.strip() for line in lines if line.startswith("  File")][-1:] if len(lines) > 1 else []
            self.note(f"{what}: {' '.join([*where, lines[-1]])[:400]}")
        return not status

    def note(self, finding: str) -> None:
        """Keep a finding, and say it at once, since a long enumeration may be ended before it is through."""
        self.outcome.findings.append(finding)
        sys.stderr.write(f"{self.operation.name}: {finding}\n")

    def fresh(self) -> None:
        """Put the files back that the operation begins with."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work, symlinks=True)
        self.trace.unlink(missing_ok=True)
        self.report.unlink(missing_ok=True)

    def act(self, fault: Fault) -> int:
        """Run the operation with a fault on fresh files -> the status of its process."""
        self.fresh()

        def work() -> None:
            fault.arm(self.work, trace=self.trace)
            self.operation.act(self.work)
            disarm()

        return child(work, self.report)

    def calls(self) -> list[Call]:
        """Run the operation undisturbed -> its calls."""
        status = self.act(Fault())
        if status:
            raise AssertionError(f"{self.operation.name}: {self.report.read_text()}")
        calls = calls_of(self.trace)
        self.outcome.num_calls = len(calls)
        self.outcome.calls = dict(Counter(call.name for call in calls))
        self.must(lambda: self.operation.complete(self.work), "undisturbed")
        return calls

    def kills(self, calls: Iterable[Call], ways: Iterable[str] = KILLS) -> None:
        """Kill the operation at each call in each way; then everything is intact, and it succeeds when repeated."""
        for call in calls:
            if call.number % 50 == 0:
                sys.stderr.write(f"{self.operation.name}: {call.number} of {self.outcome.num_calls} calls\n")
            for way in ways:
                is_torn = call.kind == "write" and "truncate" not in call.name
                if (way == "tear" and not is_torn) or (way == "power" and not self.operation.is_power_safe):
                    continue
                status = self.act(Fault(call.number, "kill" if way == "power" else way))
                self.outcome.runs[way] = self.outcome.runs.get(way, 0) + 1
                at = f"{way} at {call.number} {call.name} {self.short(call)}"
                if status != -signal.SIGKILL:
                    self.note(f"{at}: not reached, status {status}")
                    continue
                if way == "power":
                    sizes = {
                        str(self.work / path.relative_to(self.template)): path.stat().st_size
                        for path in self.template.rglob("*")
                        if path.is_file()
                    }
                    lose_unsynced(calls_of(self.trace)[:-1], sizes)
                self.after(at)

    def after(self, at: str) -> None:
        """Check what an interrupted operation has left; repeat it, and check that."""

        def work() -> None:
            self.operation.intact(self.work)
            self.operation.act(self.work)
            self.operation.complete(self.work)

        self.must(work, at)

    def failures(self, calls: Iterable[Call], errors: Iterable[int], lasting: Iterable[bool] = (False, True)) -> None:
        """Let each call fail; the operation says so in one message, or does without; nothing is lost."""
        for call in calls:
            for error in errors:
                if call.kind not in MAY_MEET[error]:
                    continue
                for is_lasting in lasting:
                    fault = Fault(call.number, "fail", error, is_lasting)
                    status = self.act(fault)
                    key = errno.errorcode[error] + (" and on" if is_lasting else "")
                    self.outcome.runs[key] = self.outcome.runs.get(key, 0) + 1
                    at = f"{key} at {call.number} {call.name} {self.short(call)}"
                    if status not in (0, REJECTED):
                        said = self.report.read_text() if self.report.exists() else f"status {status}"
                        self.note(f"{at}: no message: {summary(said)}")
                    elif status == REJECTED and os.strerror(error) not in (said := self.report.read_text()):
                        self.note(f"{at}: the cause is not in: {said[:200]}")
                    self.after(at)

    def short(self, call: Call) -> str:
        """Return a call's path below the folder."""
        return os.path.relpath(call.path, self.work)


def summary(said: str) -> str:
    """Return the last frame and the message of a traceback in one line."""
    lines = said.strip().splitlines() or [""]
    frames = [line.strip() for line in lines if line.startswith("  File") and "/gpt2x/" in line]
    return " ".join([*frames[-1:], lines[-1]])[:400]


def grouped(findings: Iterable[str]) -> list[str]:
    """Return findings with the same consequence in one line, with the places of the first few."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        place, _, what = finding.partition(": ")
        places.setdefault(re.sub(r"faults-\w+|\.\d+(?=\.part)", "", what), []).append(place)
    return [f"{len(at)} x {what}\n      at {'; '.join(at[:4])}" for what, at in places.items()]


def enumerate_operation(operation: Operation, errors: Iterable[int], ways: Iterable[str] = KILLS) -> Outcome:
    """Kill and fail every call of an operation."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        enumeration = Enumeration(operation, Path(folder).resolve() / "files")
        calls = enumeration.calls()
        enumeration.kills(calls, ways)
        enumeration.failures(calls, errors)
    enumeration.outcome.seconds = round(time.perf_counter() - started, 1)
    return enumeration.outcome


def main(arguments: list[str] | None = None) -> None:
    """Enumerate operations by name, and write the outcomes as JSON."""
    from tests.faults.operations import OPERATIONS
    from tests.faults.starts import import_all

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(OPERATIONS)}; all by default")
    parser.add_argument("--errors", choices=("none", "one", "all"), default="all")
    parser.add_argument("--ways", nargs="*", choices=KILLS, default=KILLS, help="in which a call ends the process")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    import_all()  # what an operation imports is counted to no call, and takes no time in each child
    errors = {"none": (), "one": ONE_ERROR, "all": ERRORS}[options.errors]
    outcomes = []
    for name in options.names or OPERATIONS:
        outcome = enumerate_operation(OPERATIONS[name](), errors, options.ways)
        outcomes.append(asdict(outcome))
        runs = ", ".join(f"{count} {way}" for way, count in outcome.runs.items())
        sys.stdout.write(f"{name}: {outcome.num_calls} calls; {runs}; {len(outcome.findings)} findings; ")
        sys.stdout.write(f"{outcome.seconds} s\n")
        for finding in grouped(outcome.findings):
            sys.stdout.write(f"  {finding}\n")
        sys.stdout.flush()
    if options.output:
        with contextlib.suppress(FileNotFoundError):
            options.output.unlink()
        options.output.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
