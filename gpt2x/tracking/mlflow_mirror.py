"""The process that mirrors a run in MLflow while it trains: `python -m gpt2x.tracking.mlflow_mirror RUN_DIR SESSION`.

It reads what the run writes (`metrics.jsonl`, `mlflow_run.json`) and sends it. It is a process of its own, since the
import of MLflow and its requests would hold Python's lock while the run needs it, and since a request that hangs can be
ended with a process. Its standard input ends when the run does, on whatever signal; then it sends the rest. A run that
could not close itself is KILLED at the time of its last metrics. What a user has to know goes to standard output, one
JSON object per line: `Message`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from gpt2x.tracking.mlflow_record import RunRecord, sender_lock
from gpt2x.tracking.mlflow_run import MlflowRun
from gpt2x.tracking.mlflow_sender import GoneError, Sender
from gpt2x.tracking.mlflow_store import first_line, import_mlflow, shown
from gpt2x.tracking.mlflow_sync import close_killed, end_dead_runs

GATHER_S = 2.0  # lines of this many seconds are sent together
RETRY_S = 15.0
FINISH_WAIT_S = 15.0  # for what is left, once the run has ended
LAUNCHER_WAIT_S = 3.0  # a launcher may say how a run ended that could not
NICENESS = 5  # training goes first: where both want a core, it gets 75 % of it (weights of sched(7))

Say = Callable[..., None]  # keys of a message


def mirror(
    run_dir: Path, session: str, run_ended: IO[bytes], output: IO[str], once_begun: Callable[[], None] = lambda: None
) -> None:
    """Send what a run writes until it ends, and then the rest.

    Args:
        run_dir: the run directory.
        session: of the process that trains; a later one has a mirror of its own, which continues.
        run_ended: readable, at its end, when the process has ended or has closed the run.
        output: gets the messages: `ready`, `warning` TEXT, `run` [EXPERIMENT, RUN], and at the end `left`, what MLflow
            does not take, with the reasons.
        once_begun: called when MLflow has the run, which is most of the work.
    """

    def say(**message: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            output.write(json.dumps(message) + "\n")
            output.flush()

    if not run_dir.is_dir():
        return
    with sender_lock(run_dir, 2 * FINISH_WAIT_S) as is_free:
        if is_free:
            import_mlflow()
            say(ready=True)
            _Mirror(run_dir, session, run_ended, say, once_begun).run()


class _Mirror:
    def __init__(
        self, run_dir: Path, session: str, run_ended: IO[bytes], say: Say, once_begun: Callable[[], None]
    ) -> None:
        self._run_dir, self._session, self._run_ended = run_dir, session, run_ended
        self._say, self._once_begun = say, once_begun
        self._sender = Sender(run_dir, lambda text: say(warning=text), is_live=True)
        self._end_system_metrics: Callable[[], None] | None = None
        self._has_warned = self._has_begun = False

    def run(self) -> None:
        wait_s = 0.0
        while not self._has_ended(wait_s):
            if not self._is_mine():
                return
            wait_s = GATHER_S if self._try(self._send) else RETRY_S
        deadline = time.monotonic() + FINISH_WAIT_S
        self._close_run()
        while self._is_mine():
            if self._try(self._complete):
                self._say(left=self._sender.problems)
                return
            if time.monotonic() > deadline:
                return
            time.sleep(1.0)

    def _has_ended(self, wait_s: float) -> bool:
        return bool(select.select([self._run_ended], [], [], wait_s)[0])

    def _record(self) -> RunRecord | None:
        return RunRecord.load(self._run_dir)

    def _is_mine(self) -> bool:
        """Return False if the run was resumed by another process meanwhile, or its directory was deleted."""
        record = self._record()
        return record is not None and record.session == self._session

    def _close_run(self) -> None:
        """Note how a run ended that could not."""
        deadline = time.monotonic() + LAUNCHER_WAIT_S
        while (record := self._record()) and record.session == self._session and not record.has_ended:
            if time.monotonic() > deadline:
                close_killed(record, self._run_dir)
            time.sleep(0.1)

    def _try(self, action: Callable[[], None]) -> bool:
        """Return whether MLflow has answered; whatever it raises must not end the mirror."""
        try:
            try:
                action()
            except GoneError:
                action()  # which finds or creates the run anew
            return True
        except Exception as error:
            self._warn_once(error)
            return False

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            record = self._record()
            where = f"MLflow ({shown(record.uri)})" if record else "MLflow"
            self._say(warning=f"{where} does not answer, the run continues without it: {first_line(error)}")

    def _send(self) -> None:
        self._sender.send()
        self._begin()

    def _complete(self) -> None:
        if self._end_system_metrics is not None:
            self._end_system_metrics()
            self._end_system_metrics = None
        self._sender.complete()
        self._begin()

    def _begin(self) -> None:
        """Do what is done once, after MLflow has answered."""
        if self._has_begun or (run := self._sender.run) is None:
            return
        self._has_begun = True
        self._once_begun()
        self._say(run=[run.experiment_id, run.run_id])
        if run.record.system_metrics and not run.record.has_ended:
            self._end_system_metrics = run.start_system_metrics()
        threading.Thread(target=_end_dead_runs, args=[run], daemon=True).start()


def _end_dead_runs(run: MlflowRun) -> None:
    """Do what is good for others; where it fails, `gpt2x sync` of their directories says why."""
    with contextlib.suppress(Exception):
        end_dead_runs(run)


def give_way() -> None:
    """Let training go first also where Linux shares the cores among sessions, before the niceness of a process counts.

    Only once MLflow has the run: on a busy machine a short run would else have ended before.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def main() -> None:
    """Mirror the run that the arguments name."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the whole group
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    os.nice(NICENESS)
    mirror(Path(sys.argv[1]), sys.argv[2], sys.stdin.buffer, sys.stdout, give_way)


if __name__ == "__main__":
    main()
