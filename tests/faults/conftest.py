"""The shim, compiled once per worker."""

from pathlib import Path

import pytest

from tests.faults.shim import COMPILER, build


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> Path:
    """The shim as a library; without a C compiler the test is skipped."""
    if COMPILER is None:
        pytest.skip("no C compiler (cc), which tests/faults/shim.c needs")
    return build(tmp_path_factory.mktemp("shim"))
