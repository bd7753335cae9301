"""Fixtures that several packages share, and the marks that say what a test starts (docs/design/tests.md)."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from gpt2x.config import HardwareConfig
from tests.support import kinds
from tests.support.layout_runs import layout_runs
from tests.support.models import CPU
from tests.support.zoo import Zoo

__all__ = ["layout_runs"]

logging.getLogger("gpt2x").setLevel(logging.WARNING)  # Hydra, run within a test, silences the root logger for good

SHARED = Path(os.environ.get("GPT2X_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets and models beside the project; its absence skips a test, by name."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} (set GPT2X_SHARED)")
    return folder


@pytest.fixture(scope="session")
def hardware() -> HardwareConfig:
    """The CPU, set up."""
    from gpt2x.runtime.device import set_up_device

    set_up_device(CPU)
    return CPU


@pytest.fixture(scope="session")
def zoo(tmp_path_factory) -> Zoo:
    """Five runs that are made once per session, whatever the number of workers; use them read-only."""
    root = tmp_path_factory.getbasetemp()
    return Zoo((root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "zoo")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of workers: none for single files, else one per core up to four.

    Most of a test's time is the compilation of graphs, by one core; a worker takes up to 2 GB.
    """
    chosen = [argument for argument in config.args if ".py" in argument]
    return 0 if chosen and len(chosen) == len(config.args) else min(4, len(os.sched_getaffinity(0)))


# ---- generated inputs (tests/users)

# GPT2X_EXAMPLES=N draws N inputs per property, new ones each time; without it the same few are drawn each time
EXAMPLES = os.environ.get("GPT2X_EXAMPLES")
settings.register_profile(
    "gpt2x",
    max_examples=int(EXAMPLES or 25),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("gpt2x")


# ---- marks


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(kinds.kind_of(item))


def pytest_collection_finish() -> None:
    """Import what nearly every test needs, so that the first one does not pay for it."""
    importlib.import_module("mindspore")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item):
    kinds.begin(item)
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    start, imported = time.process_time(), kinds.heavy_modules()
    try:
        return (yield)
    finally:
        seconds = time.process_time() - start
        item.user_properties.append(("cpu_s", round(seconds, 2)))
        if kinds.heavy_modules() == imported:  # the first test of a worker that needs one pays for its import
            kinds.require_short(item, seconds)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item):
    try:
        return (yield)
    finally:
        kinds.end()


sys.addaudithook(kinds.watch)
