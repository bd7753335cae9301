"""Cases of `tests.ascend.frontend` and `tests.ascend.layouts`, each in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

from tests.ascend import frontend


def compile_case(module, case, folder, timeout_s=540):
    """Compile a case in `folder`: MindSpore leaves files where it runs."""
    if reason := frontend.unsupported():
        pytest.skip(reason)
    return subprocess.run(
        [sys.executable, "-m", f"tests.ascend.{module}", case], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(frontend.ROOT)}, timeout=timeout_s, check=False,
    )  # fmt: skip


def report_of(module, case, folder, timeout_s=540):
    """What a case that compiles prints."""
    done = compile_case(module, case, folder, timeout_s)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
