"""Environment variables that a configuration refers to, as `${gpt2x.env:NAME,DEFAULT}` in `conf/`."""

from __future__ import annotations

import os
from typing import Any

from omegaconf import OmegaConf

REFERENCE = "${gpt2x.env:"  # how a value that the environment gives begins


def variable(name: str, default: Any = None) -> Any:
    """Return an environment variable without blanks around it, or `default` if it is not set, empty or blank.

    Docker compose and CI files set variables that have no value to the empty text. MLflow and Lightning take such a
    variable as one that is not set, too.
    """
    return os.environ.get(name, "").strip() or default


def parts(reference: str) -> tuple[str, str]:
    """Return the variable and the default of a reference, as both are written in the file."""
    name, _, default = reference.removeprefix(REFERENCE).removesuffix("}").partition(",")
    return name, default.strip("'")


def register() -> None:
    """Let OmegaConf resolve such references."""
    OmegaConf.register_new_resolver("gpt2x.env", variable, replace=True)
