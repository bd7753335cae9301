"""The real programs in processes of their own, for tests of the process itself: status, streams, signals, Hydra."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.small_runs import ROOT, small


def start(script: str, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run an entry script (or `-m` and a module) to its end."""
    script = script if script == "-m" else str(ROOT / script)
    done = subprocess.run([sys.executable, script, *overrides], capture_output=True, text=True, check=False)
    if check and done.returncode:
        printed = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise AssertionError(f"{script} {overrides} ended with {done.returncode}:\n{printed}")
    return done


def train(directory: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run train.py on the small corpus to its end."""
    return start("train.py", *small(directory), *overrides, check=check)


def begin(directory: Path, *overrides: str) -> subprocess.Popen:
    """Start train.py on the small corpus; its output can be read line by line."""
    command = [sys.executable, str(ROOT / "train.py"), *small(directory), *overrides]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
