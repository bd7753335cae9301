"""Configurations as the command line composes them, and the options that there are."""

from __future__ import annotations

from typing import Any

from gpt2x.commands.hydra_entry import compose_config
from tests.support.small_runs import ROOT

GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((ROOT / "conf" / group).glob("*.yaml"))]


def typed(name: str, *overrides: str) -> Any:
    """Return the typed, validated configuration of an entry point."""
    return compose_config(name, overrides)
