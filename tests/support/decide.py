"""What the entry points decide before they build a model: refusals in milliseconds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from gpt2x.commands.entry import command
from gpt2x.commands.run_directory import owned_run
from gpt2x.errors import UserError
from gpt2x.runtime.role import Role
from tests.support.configs import typed


def decide(name: str, *overrides: str) -> Any:
    """Do all that entry point `name` does before a model is built; it leaves its run directory empty.

    Raises:
        UserError: for anything that the user can put right.
    """
    config = typed(name, *overrides)
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "runs" / "new"
        with owned_run(name, config, Role(), run_dir) as (config, owned_dir):
            decision = command(name).decide(config, owned_dir, Role())
        assert not run_dir.exists()
        return decision


def refusal(name: str, *overrides: str) -> str:
    """Return the message that answers a command line which cannot be run."""
    with pytest.raises(UserError) as caught:
        decide(name, *overrides)
    return str(caught.value)
