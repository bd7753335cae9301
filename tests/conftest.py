"""Fixtures that several test files share."""

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("GPT2X_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets and models beside the project; its absence skips a test, by name."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} (set GPT2X_SHARED)")
    return folder
