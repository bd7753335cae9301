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

    def kill(self) -> None:
        """Send SIGKILL to the whole process group, as a machine that fails does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        while self.poll() is None:
            time.sleep(0.002)

    def printed(self) -> str:
        """Return what the process has printed."""
        return self.output.read_text(encoding="utf-8", errors="replace")


def fork(
    options: Sequence[str], folder: Path, output: Path, before: Callable[[], None] = lambda: None, name: str = "train"
) -> Started:
    """Run `train.py OPTIONS` in a child, in the working directory `folder`; `before` is called in the child."""
    beat = os.memfd_create("heartbeat")
    started = time.monotonic()
    pid = os.fork()
    if pid:
        return Started(pid, beat, output, started)
    status = 1
    try:
        os.setsid()
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

        before()
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


def spawn(options: Sequence[str], folder: Path, output: Path) -> Started:
    """Run `python train.py OPTIONS` as a process of its own, in the working directory `folder`."""
    beat = os.memfd_create("heartbeat")
    with output.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *options],
            cwd=folder,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            pass_fds=[beat],
            env={**os.environ, heartbeat.HEARTBEAT: str(beat)},
        )
    process.returncode = 0  # its end is asked for by `poll`
    return Started(process.pid, beat, output, time.monotonic())
