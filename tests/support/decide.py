"""What the entry points decide before they build a model: refusals in milliseconds."""

from __future__ import annotations

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from gpt2x.commands.entry import MODULES
from gpt2x.errors import UserError
from gpt2x.runtime import launch
from tests.support.configs import typed


def decide(name: str, *overrides: str) -> Any:
    """Do all that entry point `name` does before a model is built; its files go to a directory that is removed.

    Raises:
        UserError: for anything that the user can put right.
    """
    config = typed(name, *overrides)
    with tempfile.TemporaryDirectory() as run_dir, pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, launch.RUN_DIR, run_dir)
        if name == "train":
            from gpt2x.train.decision import decide

            decision = decide(config, Path(run_dir))
            assert not list(Path(run_dir).iterdir())
            return decision
        return import_module(MODULES[name]).prepare_launch(config)


def refusal(name: str, *overrides: str) -> str:
    """Return the message that answers a command line which cannot be run."""
    with pytest.raises(UserError) as caught:
        decide(name, *overrides)
    return str(caught.value)
