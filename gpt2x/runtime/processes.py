"""Processes that run, fail and end together (docs/design/launch.md; imports no mindspore)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Self

from gpt2x.errors import RunError
from gpt2x.runtime import heartbeat, interrupt, owner
from gpt2x.runtime.console import show_error, stderr
from gpt2x.runtime.hangs import Report, describe, find_hang
from gpt2x.runtime.shares import PREFIX, prefixed
from gpt2x.runtime.strangers import strangers

DONE = "GPT2X_DONE"  # in a process: the descriptor of its mark

STDOUT, STDERR = 1, 2  # descriptors
POLL_S = 0.1
HANG_POLL_S = 1.0
STACK_S = 0.5  # for a late process to write its stacks
STACK_LINES = 4
LOST_S = 20.0  # MindSpore's scheduler ends the others 30 s after it lost a process
SETTLE_S = 1.0  # after a failure, for the others to say why they fail
TRACKER_S = 8.0  # of the grace after a signal, for the launcher to close the tracker of a rank 0 that could not
KILL_S = 2.0  # for a process to be gone after SIGKILL
LOG_TAIL_BYTES = 32_768
ERROR_LINES = 12


@dataclass(frozen=True)
class Process:
    """A process of the run.

    Attributes:
        name: shown to the user.
        popen: the process.
        log: the file of its output; None: it prints to the launcher's terminal.
        mark: the pipe through which a worker says that its work is done (`say_done`).
        heartbeat: the file of its heartbeat (`gpt2x.runtime.heartbeat`).
        started: when it was started, as its heartbeat counts.
    """

    name: str
    popen: subprocess.Popen[bytes]
    log: Path | None
    mark: BufferedReader
    heartbeat: BufferedReader
    started: float = field(default_factory=time.monotonic)

    @property
    def rank(self) -> int | None:
        """The rank of a worker, else None."""
        return int(self.name.removeprefix("rank ")) if self.name.startswith("rank ") else None

    @property
    def is_running(self) -> bool:
        """True until the process has ended."""
        return self.popen.poll() is None

    @property
    def is_done(self) -> bool:
        """True if the process has succeeded, or has nothing left to do but to end."""
        return self.popen.poll() == 0 or bool(self.mark.peek(1))

    @property
    def has_failed(self) -> bool:
        """True if the process ended before its work was done, and not because a signal asked it to."""
        return self.popen.poll() is not None and not self.is_done and not self.signalled

    @property
    def signalled(self) -> int:
        """The signal that asked the process to end, once it has ended for that; else 0."""
        status = self.popen.poll()
        if status is None:
            return 0
        if -status == interrupt.requested():  # it had not yet begun to receive signals
            return -status
        return interrupt.STATUSES.get(status, 0)

    def send(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.is_running:
            self.popen.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Wait for its end, at most `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(max(0.0, seconds))

    @property
    def is_stopped(self) -> bool:
        """True if a signal or a debugger has stopped the process (Linux)."""
        with contextlib.suppress(OSError):
            state = Path(f"/proc/{self.popen.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
            return state in "Tt"
        return False

    def report(self) -> Report:
        """Return what a worker does, by its heartbeat."""
        assert self.rank is not None
        beat = heartbeat.read(self.heartbeat.fileno(), self.started)
        return Report(self.rank, beat, self.is_stopped, self.log)

    def stack(self) -> list[str]:
        """Return the innermost calls of the main thread, innermost first; none of a stopped process."""
        if self.is_stopped:
            return []
        self.send(heartbeat.STACKS)
        time.sleep(STACK_S)
        lines = heartbeat.read_stacks(self.heartbeat.fileno())
        starts = [number for number, line in enumerate(lines) if "most recent call first" in line]
        return lines[starts[-1] + 1 :][:STACK_LINES] if starts else []

    def obituary(self) -> str:
        """Return how the process failed, the path of its log, and the last error in it."""
        status = self.popen.returncode
        how = f"ended with status {status}" if status > 0 else f"was killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            how += " (is memory short?)"
        if self.log is None:
            return f"{self.name} {how}" + (", see above" if status > 0 else "")
        lines = "".join(f"\n  {line}" for line in last_error(self.log))
        return f"{self.name} {how}; {self.log}" + (f" ends:{lines}" if lines else " is empty")


@dataclass
class World:
    """The processes of a run on this node; at the end of the `with` block those that still run are ended.

    Attributes:
        farewell_s: seconds for the processes to end by themselves once the workers are done.
        timeout_s: seconds that a worker may wait for the others.
        size: number of workers on all machines.
        processes: the scheduler and the workers.
    """

    farewell_s: float = 0.0
    timeout_s: float = float("inf")
    size: int = 1
    processes: list[Process] = field(default_factory=list)
    copies: list[threading.Thread] = field(default_factory=list)  # of what processes print, if it needs a prefix

    def start(
        self, name: str, command: Sequence[str], variables: Mapping[str, str], log: Path | None,
        descriptors: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Start a process.

        Args:
            name: `rank N` of a worker.
            command: its arguments.
            variables: added to the environment.
            log: the file of its output; None: it prints to the launcher's terminal.
            descriptors: open files that it inherits.
        """
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, writing)
            beats = opened.enter_context(tempfile.TemporaryFile())
            output = opened.enter_context(log.open("wb")) if log else None
            prefix = os.environ.get(PREFIX) if log is None else None
            piped = subprocess.PIPE if prefix else output
            popen = subprocess.Popen(
                command,
                env=os.environ | dict(variables) | {DONE: str(writing), heartbeat.HEARTBEAT: str(beats.fileno())},
                stdin=subprocess.DEVNULL,
                stdout=piped,
                stderr=piped,
                pass_fds=[*descriptors, *owner.descriptors(), writing, beats.fileno()],
                process_group=0,  # a terminal's Ctrl-C reaches only the launcher
            )
            mark, beat = os.fdopen(reading, "rb"), os.fdopen(os.dup(beats.fileno()), "rb")
            if prefix:  # beside other jobs
                pipes = (popen.stdout, STDOUT), (popen.stderr, STDERR)
                self.copies += [prefixed(source, target, prefix) for source, target in pipes if source]
        self.processes.append(Process(name, popen, log, mark, beat))

    @property
    def workers(self) -> list[Process]:
        """All processes but the scheduler."""
        return [process for process in self.processes if process.rank is not None]

    def wait(self) -> None:
        """Wait until the workers are done; hand them a signal that asks this process to end.

        Raises:
            RunError: a worker failed, or waited too long for another; the error has been shown.
            Interrupted: a signal asked this process or a worker to end, and the workers have ended.
        """
        with interrupt.deferred("the processes save and end"):
            looked, is_told = time.monotonic(), False
            while not all(process.is_done for process in self.workers):
                if interrupt.requested() and not is_told:
                    is_told = True
                    for process in self.workers:
                        process.send(interrupt.requested())
                self._check()
                if any(process.signalled for process in self.workers) or is_late():
                    self._end_signalled()
                if time.monotonic() - looked > HANG_POLL_S:
                    looked = time.monotonic()
                    self._check_waits()
                time.sleep(POLL_S)
            self._leave(self.farewell_s)

    def _end_signalled(self) -> None:
        """Wait until all workers have ended, once a signal has ended one; end those that wait for it in vain.

        Raises:
            Interrupted: always.
        """
        while running := [process for process in self.workers if process.is_running and not process.is_done]:
            for process in running:
                if is_late() or process.report().heartbeat.waits_for != heartbeat.NOTHING:
                    process.send(signal.SIGKILL)
            time.sleep(POLL_S)
        numbers = (process.signalled for process in self.workers)
        raise interrupt.Interrupted(interrupt.requested() or next(filter(None, numbers)))

    def _leave(self, seconds: float) -> None:
        """Wait for the end of all processes, at most `seconds` in total."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.wait(deadline - time.monotonic())

    def _check(self) -> None:
        failed = [process for process in self.processes if process.has_failed]
        if not failed:
            return
        time.sleep(SETTLE_S)
        failed += [process for process in self.processes if process.has_failed and process not in failed]
        status = 2 if failed[0].popen.returncode == 2 else 1
        # rank 0, which has no log file, tells a mistake of the user (status 2) on the terminal itself
        is_told = any(process.log is None and process.popen.returncode == status == 2 for process in failed)
        if not is_told:
            later = ", ".join(process.name for process in failed[1:])
            late = self._hang(LOST_S)
            stderr.end_bar()
            text = failed[0].obituary() + (f"\n  then failed: {later}" if later else "")
            show_error((f"{text}\n{late}" if late else text) + strangers())
        raise RunError(status=status)

    def _check_waits(self) -> None:
        late = self._hang(self.timeout_s)
        if late:
            stderr.end_bar()
            advice = f"launch.timeout_s={self.timeout_s:g} ends such a wait; if it is only slow, give more."
            show_error(f"{late}{strangers()}\n{advice}")
            raise RunError(status=1)

    def _hang(self, limit_s: float) -> str:
        """Return who has kept others waiting longer than `limit_s`; "" if nobody has, or if it has failed."""
        reports, now = [process.report() for process in self.workers], time.monotonic()
        hang = find_hang(reports, self.size, limit_s, now)
        late = [process for process in self.workers if hang and process.rank in hang.late]
        if hang is None or any(process.has_failed for process in late):
            return ""
        stacks = {process.rank: process.stack() for process in late if process.rank is not None}
        return describe(hang, reports, now, stacks)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        for process in self.processes:
            process.send(signal.SIGKILL)  # nothing is lost, and one in a collective reacts to nothing else
        self._leave(KILL_S)
        for copy in self.copies:  # they end with the processes
            copy.join(KILL_S)
        for process in self.processes:
            process.mark.close()
            process.heartbeat.close()


def is_late() -> bool:
    """Return True if a signal asked this process to end, and the time for its workers is over."""
    return time.monotonic() > interrupt.deadline(TRACKER_S)


def say_done() -> None:
    """Tell the launcher, from one of its processes, that whatever happens to this process from now on is no failure.

    MindSpore's farewell to the other processes crashes in about one run of twenty (2.10 on the CPU).
    """
    if DONE in os.environ:
        os.write(int(os.environ[DONE]), b".")


def last_error(log: Path) -> list[str]:
    """Return the last `error: …` of a log, or the last exception and its location; without either, the last lines."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    for start in reversed(range(len(lines))):
        if lines[start].startswith("error: "):
            return lines[start : start + ERROR_LINES]
        if lines[start].startswith("Traceback "):
            end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith("  ")), len(lines))
            locations = [line for line in lines[start:end] if line.startswith("  File ")]
            return locations[-1:] + lines[end : end + ERROR_LINES]
    return lines[-ERROR_LINES:]
