"""The options in `conf/`, read without Hydra."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TypeVar

from omegaconf import OmegaConf

from gpt2x.config import schema
from gpt2x.errors import UserError

Node = TypeVar("Node")
CONF = Path(__file__).resolve().parents[2] / "conf"


def suggestion(word: str, choices: list[str]) -> str:
    """'did you mean X? ' or nothing."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.75)
    return f"did you mean {close[0]}? " if close else ""


def known_models() -> dict[str, schema.ModelConfig]:
    """The options of `conf/model` by name."""
    return {name: read_option("model", name, schema.ModelConfig) for name in options("model")}


def options(group: str) -> list[str]:
    """The names of the options in `conf/<group>`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def unknown_option(group: str, name: str, known: list[str]) -> str:
    """What is wrong with an option that a group does not have: a did-you-mean, and those it has."""
    return f"{group}={name} is not an option; {suggestion(name, known)}options: {', '.join(known)}"


def read_option(group: str, name: str, node: type[Node]) -> Node:
    """The option `name` of `conf/<group>` as its dataclass `node`, for an entry point that Hydra does not compose.

    Raises:
        UserError: there is no such option.
    """
    if name not in (known := options(group)):
        raise UserError(unknown_option(group, name, known))
    values = OmegaConf.load(CONF / group / f"{name}.yaml")
    option = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(node), values))
    assert isinstance(option, node)
    return option
