"""What a test starts: `unit` nothing, `run` a run within the process, `launch` processes. Each test has one of them.

A test is marked by hand, or by the fixtures that it uses; what is left is `unit`, and is held to it: it fails if it
starts a process, or takes more than two seconds of the processor (wall time depends on what else a machine does).
"""

from __future__ import annotations

import sys

import pytest

KINDS = ("unit", "run", "launch")
RUN_FIXTURES = {"zoo", "hardware"}  # the second compiles a model
UNIT_SECONDS = 10.0  # generous: a machine that others load takes three times as long
HEAVY = (
    "datasets",
    "lm_eval",
    "matplotlib.pyplot",
    "mlflow",
    "pandas",
    "sklearn",
    "tensorboard",
    "torch",
    "transformers",
    "wandb",
)  # to import

_current: list[str] = []  # kind and name of the test that runs


def kind_of(item: pytest.Item) -> str:
    """Return the mark that says what a test starts; a test's own goes before its module's."""
    marked = [mark.name for mark in item.iter_markers()]
    for name in marked:
        if name in KINDS:
            return name
    if "ascend" in marked:
        return "launch"
    return "run" if "parity" in marked or RUN_FIXTURES & set(getattr(item, "fixturenames", ())) else "unit"


def heavy_modules() -> set[str]:
    """Return which of the modules that take a second or more to import are there."""
    return set(HEAVY) & set(sys.modules)


def begin(item: pytest.Item) -> None:
    """Note which test runs."""
    _current[:] = [kind_of(item), item.nodeid]


def end() -> None:
    """Note that no test runs."""
    _current.clear()


def require(kind: str) -> None:
    """Fail a test that starts more than its mark says."""
    if _current and KINDS.index(_current[0]) < KINDS.index(kind):
        pytest.fail(f"{_current[1]} is marked {_current[0]}: mark it {kind}, which is what it starts")


def require_short(item: pytest.Item, seconds: float) -> None:
    """Fail a unit test that takes too long."""
    if seconds > UNIT_SECONDS and kind_of(item) == "unit":
        pytest.fail(f"a unit test took {seconds:.1f} s of the processor, over {UNIT_SECONDS:.0f}: mark it run")


def watch(event: str, arguments: tuple) -> None:
    """Audit hook: a program of Python is started; what NumPy asks `lscpu`, and tests `git`, is no run."""
    if event == "subprocess.Popen" and str(arguments[0]).rpartition("/")[2].startswith(("python", "msrun")):
        require("launch")
