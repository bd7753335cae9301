"""MLflow's mirror in a thread: what `mlflow_mirror` does, without the 2 s that a process takes to import MLflow."""

from __future__ import annotations

import os
import threading

from gpt2x.tracking.mlflow_mirror import mirror


class MirrorThread:
    """Has what `MlflowTracker` needs of a process, except that it cannot be killed: it ends by itself."""

    def __init__(self, run_dir, session):
        messages, output = os.pipe()
        run_ended, stdin = os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "w"), os.fdopen(messages)
        self._files = os.fdopen(run_ended, "rb"), os.fdopen(output, "w")
        self._thread = threading.Thread(target=self._run, args=[run_dir, session], daemon=True)
        self._thread.start()

    def _run(self, run_dir, session):
        run_ended, output = self._files
        with run_ended, output:
            mirror(run_dir, session, run_ended, output)

    def kill(self):
        """Do nothing."""

    def wait(self):
        """Wait for the end."""
        self._thread.join()
        return 0
