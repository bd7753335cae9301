"""`python train.py …` from a process that has imported everything: the same program, without 3 s of imports each time.

The child runs what `train.py` runs, in a process group of its own, with its output in a file and a heartbeat that
says what it does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from gpt2x.runtime import heartbeat
from tests.support.small_runs import ROOT

TRAIN = ROOT / "train.py"
IMPORTED = (
    "mindspore",
    "mindspore.dataset",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "mlflow.tracking.client",
    "gpt2x.commands.train",
    "gpt2x.commands.hydra_entry",
    "gpt2x.commands.start_checks",
    "gpt2x.reports",
)


def import_all() -> None:
    """Import what a run imports; no graph is compiled and no thread started that a child would lack."""
    os.environ.setdefault("GLOG_v", "3")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in IMPORTED:
        import_module(name)


@dataclass
class Started:
    """A run that was started; `pid` leads its process group."""

    pid: int
    beat: int  # descriptor of its heartbeat
    output: Path
    started: float
    status: int | None = None

    def doing(self) -> str:
        """Return what the process says that it does: starting, train, compiling, update 3, SaveCheckpoint …"""
        return heartbeat.read(self.beat, self.started).doing

    def poll(self) -> int | None:
        """Return the status if the process has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                os.close(self.beat)
        return self.status

    def wait(self, seconds: float) -> int:
        """Wait for the end -> the status.

        Raises:
            AssertionError: it has not ended in time.
        """
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no end in {seconds:g} s: {self.printed()[-2000:]}")
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def kill(self, *pids: int) -> None:
        """Send SIGKILL to processes, or to all of the run, as a machine that fails does; wait until none is left."""
        family = family_of(self.pid)
        for pid in pids or family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.poll() is None or any(state_of(pid) not in "ZX" for pid in ([] if pids else family)):
            time.sleep(0.002)

    def printed(self) -> str:
        """Return what the process has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")


def family_of(pid: int) -> list[int]:
    """Return a process and those that it started, and they, and so on."""
    parents: dict[int, list[int]] = {}
    for each in processes():
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(each)
    family = [pid]
    for each in family:
        family += parents.get(each, [])
    return family


def processes() -> list[int]:
    """Return all processes of this machine."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def command_of(pid: int) -> str:
    """Return the command line of a process; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def session_of(pid: int) -> int | None:
    """Return the session of a process; None if there is none."""
    with contextlib.suppress(ProcessLookupError):
        return os.getsid(pid)
    return None


def state_of(pid: int) -> str:
    """Return the state of a process, such as R, S, Z; X: there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def workers_of(pid: int) -> dict[int, tuple[int, int]]:
    """Return rank -> (pid, open file of the heartbeat) of the processes that a launcher has started so far."""
    workers: dict[int, tuple[int, int]] = {}
    for each in family_of(pid)[1:]:
        with contextlib.suppress(OSError, KeyError):
            pairs = (pair.partition(b"=") for pair in Path(f"/proc/{each}/environ").read_bytes().split(b"\0"))
            variables = {name: value for name, _, value in pairs}
            if (
                variables[b"MS_ROLE"] == b"MS_WORKER" and int(variables[b"MS_NODE_ID"]) not in workers
            ):  # not its children
                beat = os.open(f"/proc/{each}/fd/{int(variables[heartbeat.HEARTBEAT.encode()])}", os.O_RDONLY)
                workers[int(variables[b"MS_NODE_ID"])] = (each, beat)
    return workers


def fork(options: Sequence[str], folder: Path, output: Path, name: str = "train") -> Started:
    """Run `train.py OPTIONS` in a child, in the working directory `folder`."""
    beat = os.memfd_create("heartbeat")
    started = time.monotonic()
    pid = os.fork()
    if pid:
        return Started(pid, beat, output, started)
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP):  # which this process ignores if a shell runs it in the background
            signal.signal(number, signal.SIG_DFL)
        os.chdir(folder)
        stream = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for descriptor in (1, 2):
            os.dup2(stream, descriptor)
        os.environ[heartbeat.HEARTBEAT] = str(beat)
        os.environ["GPT2X_STARTED"] = repr(time.time())
        sys.argv = [str(TRAIN), *options]
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        from gpt2x.commands.cli import script

        script(name)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def spawn(options: Sequence[str], folder: Path, output: Path, before: Callable[[], None] | None = None) -> Started:
    """Run `python train.py OPTIONS` as a process of its own, in the working directory `folder`.

    Args:
        before: called in the child before the program begins; it makes the child's session.
    """
    beat = os.memfd_create("heartbeat")
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *options],
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=before is None,
            preexec_fn=before,
            pass_fds=[beat],
            env={**os.environ, heartbeat.HEARTBEAT: str(beat)},
        )
    process.returncode = 0  # its end is asked for by `poll`
    return Started(process.pid, beat, output, time.monotonic())
