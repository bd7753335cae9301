"""Extensions: a package whose every module is one option, so that a new option is one new file.

The schedules are such a package: `gpt2x/optim/schedules/cosine.py` is `schedule.name=cosine`. The file's name is the
option's name, no list repeats it, and the names are read without importing any module.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.errors import UserError, did_you_mean, require_choice

TYPES = {  # of keys and of settings, in words
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list[int]": "a list of whole numbers such as [1,2]",
    "list[str]": "a list of texts such as [a,b]",
    "dict[str, str]": "a mapping such as {0: a, 1: b}",
    "dict[str, Any]": "a mapping such as {a:1}",
}

Settings = TypeVar("Settings")
HELPERS = ("base", "registry")  # modules beside the options; so is every module whose name starts with "_"


@dataclass(frozen=True)
class NoSettings:
    """The settings of an option that has none."""


class Extensions:
    """The options of one package, by name."""

    def __init__(self, package: str, attribute: str, key: str = "") -> None:
        """
        Args:
            package: dotted name of the package, such as `gpt2x.optim.schedules`.
            attribute: what each module must define, such as `decay`.
            key: the configuration key that chooses among them, for messages; by default the package's last name.
        """
        self.package = package
        self.attribute = attribute
        self.key = key or package.rpartition(".")[2]

    def names(self) -> list[str]:
        """Return the sorted names of the options; imports nothing."""
        stems = (path.stem for path in self._folder().glob("*.py"))
        return sorted(stem for stem in stems if not stem.startswith("_") and stem not in HELPERS)

    def load(self, name: str) -> Any:
        """Import the module `name` and return its attribute.

        Raises:
            UserError: there is no such option, or its module lacks the attribute.
        """
        require_choice(self.key, name, self.names())
        module = importlib.import_module(f"{self.package}.{name}")
        if not hasattr(module, self.attribute):
            raise UserError(f"{self.key}={name}: {module.__file__} does not define {self.attribute}; define it there.")
        return getattr(module, self.attribute)

    def literal(self, name: str, constant: str) -> Any:
        """Read the literal that the module `name` assigns to `constant`, without importing the module.

        Raises:
            UserError: there is no such option, or its module does not assign a literal to `constant`.
        """
        require_choice(self.key, name, self.names())
        path = self._folder() / f"{name}.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [constant]:
                return ast.literal_eval(node.value)
        raise UserError(f"{self.key}={name}: {path} does not define {constant}; assign a literal to it there.")

    def settings(self, name: str, mapping: Mapping[str, Any] | None) -> Any:
        """Return `mapping` as the `Settings` of the option `name`; without that dataclass it has no settings.

        Raises:
            UserError: there is no such option, or as `settings`.
        """
        group = self.key.rpartition(".")[0] or self.key
        return settings(self.settings_class(name), mapping, f"{group}.settings")

    def settings_class(self, name: str) -> type:
        """Return the dataclass `Settings` of the option `name`, or `NoSettings`.

        Raises:
            UserError: there is no such option.
        """
        self.load(name)
        return getattr(importlib.import_module(f"{self.package}.{name}"), "Settings", NoSettings)

    def _folder(self) -> Path:
        """The package's directory, located without importing the packages above it."""
        top, *inner = self.package.split(".")
        spec = importlib.util.find_spec(top)
        assert spec is not None, f"{top} is not installed"
        assert spec.submodule_search_locations, f"{top} is not a package"
        return Path(spec.submodule_search_locations[0], *inner)


def settings(cls: type[Settings], mapping: Mapping[str, Any] | None, key: str) -> Settings:
    """Return the dataclass `cls` with the values of `mapping`, converted to the types of its fields.

    Args:
        cls: the dataclass of an extension's own settings, such as `Settings` in `gpt2x/optim/schedules/cosine.py`.
        mapping: what the configuration has, such as `config.schedule.settings`.
        key: where it stands, such as `schedule.settings`, for messages.

    Raises:
        UserError: a key that `cls` does not have, a value of a wrong type, or no value for a field without a default.
    """
    values = OmegaConf.structured(cls)
    names = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    for name, value in (mapping or {}).items():
        if name not in names:
            allowed = f"settings are: {', '.join(names)}" if names else "it has no settings"
            raise UserError(f"{key}.{name} does not exist; {did_you_mean(name, names)}{allowed}.")
        try:
            values[name] = value
        except OmegaConfBaseException:
            raise UserError(f"{key}.{name}={'null' if value is None else value} must be {_type(cls, name)}.") from None
    missing = sorted(OmegaConf.missing_keys(values))
    if missing:
        raise UserError(f"{key}.{missing[0]} has no value; give {key}.{missing[0]}=VALUE.")
    result = OmegaConf.to_object(values)
    assert isinstance(result, cls)
    return result


def _type(cls: type, name: str) -> str:
    """The type of a field in words."""
    hint = next(entry.type for entry in fields(cls) if entry.name == name)
    text = hint if isinstance(hint, str) else str(hint).removeprefix("<class '").removesuffix("'>")
    return TYPES.get(text.removesuffix(" | None"), text)
