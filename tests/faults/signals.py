"""The signal table: `python -m tests.faults.signals --layout single --report signals.md`.

Each case starts a run, sends a signal in a phase of it, and notes the status, the seconds until the process was gone,
the updates that the newest checkpoint lacks, and the state in MLflow. Then the same command with `resume=auto` ends the
run, which has to equal an undisturbed one, as after a kill (`tests/faults/kills.py`).
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.faults import starts
from tests.faults.kills import PHASES, Kills, last_step
from tests.faults.starts import Started

ALONE = [(number, "training", "run") for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)]
ALONE += [(signal.SIGTERM, phase, "run") for phase in PHASES if phase != "training"]
ALONE += [(signal.SIGINT, phase, "run") for phase in ("starting", "compiling", "evaluating", "sampling", "saving")]
ALONE += [(signal.SIGHUP, "training", "terminal"), (signal.SIGTERM, "training", "twice")]
TOGETHER = [(signal.SIGTERM, phase, "launcher") for phase in PHASES]
TOGETHER += [(signal.SIGTERM, "training", "all"), (signal.SIGUSR1, "training", "rank 1"),
             (signal.SIGINT, "training", "launcher"), (signal.SIGUSR1, "evaluating", "all"),
             (signal.SIGHUP, "training", "terminal"), (signal.SIGTERM, "training", "twice")]  # fmt: skip
CASES = {"single": ALONE, "dp2": TOGETHER, "tp2": TOGETHER}
SECOND_S = 1.1  # a second signal counts after a second
END_S = 30.0  # launch.grace_s, which Slurm and Kubernetes grant


@dataclass
class Case:
    """What a signal did."""

    number: signal.Signals
    phase: str
    target: str
    hit: str = ""
    status: int = 0
    seconds: float = 0.0
    lost: int = 0
    state: str = ""
    finding: str = ""

    def row(self) -> str:
        """Return its row of the table."""
        sent, finding = f"{self.number.name[3:]} to {self.target}", self.finding or "identical"
        return f"| {sent} | {self.hit} | {self.status} | {self.seconds:.1f} | {self.lost} | {self.state} | {finding} |"


class Terminal:
    """A terminal that a run has, and that can be closed."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        os.set_blocking(self.master, False)

    def enter(self) -> None:
        """Make it the terminal of this process, in a session of its own."""
        for number in (signal.SIGINT, signal.SIGHUP):  # ignored if a shell runs the driver in the background
            signal.signal(number, signal.SIG_DFL)
        os.close(self.master)
        os.login_tty(self.slave)

    def read(self) -> None:
        """Take what was printed, so that the run does not wait."""
        with suppress(BlockingIOError):
            os.read(self.master, 1 << 16)


class Signals(Kills):
    """The cases of one layout below a folder."""

    def one_case(self, number: signal.Signals, phase: str, target: str) -> Case:
        """Signal a run, end it by `resume=auto`, and compare."""
        case = Case(number, phase, target)
        outputs = self.folder / f"{number.name}-{phase}-{target.replace(' ', '')}"
        outputs.mkdir()
        self.outputs, self.remains = outputs, set()
        terminal = Terminal() if target == "terminal" else None
        options = [*self.options(outputs), "resume=auto"]
        # a process of its own has streams that Python has opened for this terminal
        start = partial(starts.spawn, before=terminal.enter) if terminal else starts.fork
        run = start(options, self.folder / "cwd", self.folder / "printed")
        self.reach(run, phase, terminal)
        case.hit = self.phase(run)
        began = time.monotonic()
        self.send(run, number, target, terminal)
        case.status = run.wait(3 * END_S)
        case.seconds = time.monotonic() - began
        printed = run.printed()
        saved = max((int(path.name[5:]) for path in outputs.rglob("checkpoints/step_*")), default=0)
        done = max((last_step(path.parent) or 0 for path in outputs.rglob("metrics.jsonl")), default=0)
        case.lost, case.state = max(0, done - saved), self.state(outputs)  # a step whose validation is open has no line
        num_findings = len(self.report.findings)
        if "Traceback" in printed:
            self.report.findings.append(f"a traceback: {printed.strip().splitlines()[-1][:200]}")
        if case.seconds > END_S:
            self.report.findings.append(f"{case.seconds:.0f} s until the end")
        if case.status != 128 + number and not (case.hit == "ending" and case.status == 0):
            logs = "".join(path.read_text(errors="replace")[-1500:] for path in outputs.rglob("run.log"))
            self.report.findings.append(f"status {case.status}: {printed[-300:]}; run.log: {logs}")
        self.to_end(outputs, "resume=auto")
        self.compare(outputs)
        case.finding = "; ".join(self.report.findings[num_findings:])
        return case

    def reach(self, run: Started, phase: str, terminal: Terminal | None) -> None:
        """Wait until a run is in a phase, for the second time if it is training or saving."""
        visits, inside = int(phase in ("training", "saving")), False
        while run.poll() is None:
            if terminal:
                terminal.read()
            is_there = self.phase(run) == phase
            if is_there and not inside:
                if not visits:
                    break
                visits -= 1
            inside = is_there
            time.sleep(0.001)
        time.sleep(0.3 * self.durations.get(phase, 0.1) if phase not in ("training", "saving") else 0.0)

    def send(self, run: Started, number: signal.Signals, target: str, terminal: Terminal | None) -> None:
        """Send the signal."""
        if terminal:
            os.close(terminal.slave)
            os.close(terminal.master)  # the kernel sends SIGHUP
            return
        pids = {"run": [run.pid], "launcher": [run.pid], "twice": [run.pid]}
        pids["all"] = [run.pid, *(pid for pid, _ in self.workers.values())]
        pids |= {f"rank {rank}": [pid] for rank, (pid, _) in self.workers.items()}
        for pid in pids[target]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        if target == "twice":
            time.sleep(SECOND_S)
            with suppress(ProcessLookupError):
                os.kill(run.pid, number)

    def state(self, outputs: Path) -> str:
        """Return the states that MLflow shows for a run."""
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            query = "SELECT r.status FROM runs r JOIN tags t ON t.run_uuid = r.run_uuid"
            query += " WHERE t.key = 'run_dir' AND t.value LIKE ?"
            return ", ".join(state for (state,) in store.execute(query, [f"{outputs}/%"])) or "no run"


def main() -> None:
    """Send the signals, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=CASES, default="single")
    parser.add_argument("--target", help="only the cases of: run, launcher, all, terminal, …; all by default")
    parser.add_argument("--phase", choices=PHASES, help="only the cases of this phase")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    starts.import_all()
    lines = [
        "| signal | while | status | s | updates lost | MLflow | after resume=auto |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="signals-") as folder:
        driver = Signals(Path(folder).resolve() / "files", options.layout, 0, True)
        driver.reference()
        sys.stdout.write("\n".join(lines) + "\n")
        for number, phase, target in CASES[options.layout]:
            if options.target not in (None, target) or options.phase not in (None, phase):
                continue
            lines.append(driver.one_case(number, phase, target).row())
            sys.stdout.write(lines[-1] + "\n")
            sys.stdout.flush()
    if options.report:
        options.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.exit(bool(driver.report.findings))


if __name__ == "__main__":
    main()
