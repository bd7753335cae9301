"""train, evaluate and predict within the process of the tests: bit-identical to a process, without its start.

A run in a process of its own costs 9 CPU s, of which imports and the measurement of the peak are a third.
`tests/train/test_in_process.py` holds that both give the same numbers.
"""

from __future__ import annotations

import contextlib
import gc
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2x.commands.entry import run_in_process
from tests.support import kinds
from tests.support.configs import typed
from tests.support.small_runs import small


@dataclass(frozen=True)
class Finished:
    """A run that has ended: where it wrote, and what it printed."""

    run_dir: Path
    stdout: str
    stderr: str


def new_run_dir(config: Any) -> Path:
    """Return a run directory as Hydra names it, with a number instead of the time."""
    outputs = Path(config.paths.outputs)
    folder = outputs / config.task.name / config.model.name if hasattr(config, "trainer") else outputs / "runs"
    number = len(list(folder.iterdir())) if folder.is_dir() else 0
    path = folder / f"{number:04}"
    path.mkdir(parents=True)
    return path


def run(name: str, *overrides: str) -> Finished:
    """Run entry point `name` to its end, as one process does.

    The compile cache is off: MindSpore takes the place of its cache once per process.

    Raises:
        UserError: for anything that the user can put right.
    """
    kinds.require("run")
    options = ["trainer.compile_cache=false"] if name == "train" else []
    config = typed(name, *options, *overrides)
    run_dir = new_run_dir(config)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_in_process(name, config, run_dir)
    finally:
        gc.collect()  # graphs hang in circles of cells
        with contextlib.suppress(OSError):
            run_dir.rmdir()  # of a resumed run, which wrote to its first directory
    if not run_dir.is_dir() and getattr(config, "resume", None) == "auto":
        run_dir = newest(config)
    return Finished(run_dir, out.getvalue(), err.getvalue())


def newest(config: Any) -> Path:
    """Return the run directory below paths.outputs that was written last."""
    found = Path(config.paths.outputs).rglob("metrics.jsonl")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def train(directory: Path, *overrides: str) -> Finished:
    """Train on the small corpus, with all files under `directory`."""
    return run("train", *small(directory), *overrides)
