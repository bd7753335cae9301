"""The options in `conf/`, read without Hydra."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from gpt2x.config import schema
from gpt2x.config.keys import defaults, flatten, leaves
from gpt2x.errors import UserError, did_you_mean

Group = TypeVar("Group")
# A wheel holds conf/ within the package; an editable installation uses the repository's.
_PACKAGE = Path(__file__).resolve().parents[1]
CONF = next(path / "conf" for path in (_PACKAGE, _PACKAGE.parent) if (path / "conf").is_dir())
SCHEMAS: dict[str, type] = {
    "train": schema.TrainConfig,
    "evaluate": schema.EvaluateConfig,
    "predict": schema.PredictConfig,
    "prepare": schema.PrepareConfig,
}  # entry point -> its configuration


def known_models() -> dict[str, schema.ModelConfig]:
    """Return the options of `conf/model` by name."""
    return {name: read_option("model", name, schema.ModelConfig) for name in options("model")}


def options(group: str) -> list[str]:
    """Return the names of the options in `conf/<group>`."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def unknown_option(group: str, name: str, names: list[str]) -> str:
    """Return the message for an option that a group does not have: a did-you-mean, and the options that it has."""
    return f"{group}={name} is not an option; {did_you_mean(name, names)}options: {', '.join(names)}."


def read_option(group: str, name: str, cls: type[Group]) -> Group:
    """Return the option `name` of `conf/<group>` as its dataclass `cls`, without Hydra.

    Raises:
        UserError: there is no such option.
    """
    names = options(group)
    if name not in names:
        raise UserError(unknown_option(group, name, names))
    values = OmegaConf.load(CONF / group / f"{name}.yaml")
    option = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
    assert isinstance(option, cls)
    return option


def chosen_options(entry: str) -> dict[str, str | None]:
    """Return the groups of an entry point, each with the option that `conf/<entry>.yaml` chooses."""
    items = [item for item in _read(CONF / f"{entry}.yaml")["defaults"] if isinstance(item, dict)]
    return {group: name for item in items for group, name in item.items() if not group.startswith("override ")}


def composed_defaults(entry: str) -> dict[str, Any]:
    """Return the value of every key of an entry point if nothing is chosen on the command line.

    As Hydra composes them: the schema's defaults, then the values of `conf/<entry>.yaml`, then the chosen options.
    References to the environment stay as they are written; a key without a value is missing.
    """
    root = SCHEMAS[entry]
    values = defaults(root) | flatten(_read(CONF / f"{entry}.yaml"), root)
    for group, name in chosen_options(entry).items():
        if name is not None:
            values |= flatten({group: _read(CONF / group / f"{name}.yaml")}, root)
    return {key: values[key] for key in leaves(root) if key in values}


def experiments(entry: str) -> list[str]:
    """Return the experiments of an entry point: those whose file shows a command of it."""
    command = re.compile(rf"(python {entry}\.py|gpt2x {entry}) experiment=")
    return [name for name in options("experiment") if command.search(_text("experiment", name))]


def option_comment(group: str, name: str) -> str:
    """Return the first sentence of the comment at the top of an option's file; '' if there is none."""
    lines = []
    for line in _text(group, name).splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.lstrip("# "))
    return re.split(r"(?<=[.?!])\s", " ".join(lines))[0]


def _text(group: str, name: str) -> str:
    return (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, if PyYAML was built with libyaml
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader) or {}
