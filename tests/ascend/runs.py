"""Cases of `tests.ascend.frontend` and `tests.ascend.layouts`, many in one process, which no test shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ascend import frontend

REPORTS = "reports.json"


class Reports:
    """What the frontend made of cases: {"report"}, {"rejected"} or {"crashed"} with a message, by case."""

    def __init__(self, cases: dict[str, dict]):
        self.cases = cases

    def of(self, case: str):
        """Return the report of a case that has to compile."""
        assert list(self.cases[case]) == ["report"], f"{case}: {self.cases[case]}"
        return self.cases[case]["report"]

    def rejection(self, case: str) -> str:
        """Return the message of the frontend for a case that has to be rejected."""
        assert list(self.cases[case]) == ["rejected"], f"{case}: {str(self.cases[case])[:500]}"
        return self.cases[case]["rejected"]


def compile_all(module: str, cases: list[str], folder: Path, timeout_s: float) -> dict[str, dict]:
    """Compile cases one after the other in `folder`, where MindSpore leaves files.

    After a case that is rejected or ends its process, a new process compiles the rest.
    """
    reports: dict[str, dict] = {}
    while left := [case for case in cases if case not in reports]:
        done = subprocess.run(
            [sys.executable, "-m", f"tests.ascend.{module}", *left], cwd=folder, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": str(frontend.ROOT)}, timeout=timeout_s, check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
        reports |= {line.pop("case"): line for line in lines}
        left = [case for case in left if case not in reports]
        if left and (not lines or "rejected" not in lines[-1]):
            reports[left[0]] = {"crashed": f"status {done.returncode}: {(done.stdout + done.stderr)[-3000:]}"}
    return reports


def require_frontend() -> None:
    """Skip the test, with the reason, on a machine that cannot pretend to have an Ascend."""
    if reason := frontend.unsupported():
        pytest.skip(reason)
