"""A launcher and its processes, as a test sees them from outside."""

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

from tests.support.small_runs import ROOT

PROMPT_S = 15.0  # within which all has to be over
MARK = "GPT2X_TEST_MARK"


class Running:
    """A Python program in a process group of its own, and all processes that come of it."""

    def __init__(self, *arguments: str):
        self.mark = uuid.uuid4().hex
        self.launcher = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            process_group=0, env=os.environ | {MARK: self.mark, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip

    def processes(self) -> dict[int, str]:
        """All that have the mark in their environment, with the environment."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                environment = path.read_bytes().decode("utf-8", "replace")
            except OSError:
                continue
            if f"{MARK}={self.mark}" in environment:
                found[int(path.parent.name)] = environment
        return found

    def pid_of(self, rank: int) -> int:
        """The process of a rank."""
        return next(pid for pid, variables in self.processes().items() if f"\0MS_NODE_ID={rank}\0" in variables)

    def end(self, within_s: float = PROMPT_S) -> tuple[int, str, str]:
        """Status, stdout and stderr; nothing may be left."""
        started = time.monotonic()
        out, error = self.launcher.communicate(timeout=within_s + 60)
        while self.processes() and time.monotonic() - started < within_s:
            time.sleep(0.1)
        assert not self.processes()
        assert time.monotonic() - started < within_s
        return self.launcher.returncode, out, error
