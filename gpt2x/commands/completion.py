"""Completion on the Tab key: what can follow in a command line (`-sc query=SHELL`; Hydra's script asks for it)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpt2x.config.keys import leaves
from gpt2x.config.options import CONF, SCHEMAS


def candidates(line: str, commands: Sequence[str]) -> list[str]:
    """Return the words that can stand where the cursor is; none if the line cannot be read.

    Args:
        line: as typed so far, such as `gpt2x train mod` or `python train.py mod`.
        commands: those of `gpt2x`.
    """
    words = line.split()
    current = "" if line[-1:].isspace() or not words else words.pop()
    scripts = [index for index, word in enumerate(words[:2]) if word.endswith(".py")]
    if scripts:
        name, rest = Path(words[scripts[0]]).stem, words[scripts[0] + 1 :]
    elif len(words) > 1:
        name, rest = {"plan": "train"}.get(words[1], words[1]), words[2:]
    else:
        return sorted(name for name in commands if name.startswith(current))
    if name not in SCHEMAS:
        return []
    return sorted({*_flags(current), *_choices(name, current), *_overrides(name, rest, current)})


def _flags(current: str) -> list[str]:
    from hydra._internal.utils import get_args_parser

    if not current.startswith("-"):
        return []
    options = [option for action in get_args_parser()._actions for option in action.option_strings]
    return [option for option in options if option.startswith(current)]


def _choices(entry: str, current: str) -> list[str]:
    """The values of a key that has only a few."""
    key, equal, value = current.partition("=")
    leaf = leaves(SCHEMAS[entry]).get(key.lstrip("+"))
    if leaf is None or not equal:
        return []
    names = leaf.facts.names() or (["true", "false"] if leaf.type.startswith("bool") else [])
    return [f"{key}={name}" for name in names if name.startswith(value)]


def _overrides(entry: str, words: list[str], current: str) -> list[str]:
    """What Hydra's completion finds: options of groups, keys, and files."""
    import hydra
    from hydra._internal.core_plugins.bash_completion import BashCompletion
    from hydra.core.global_hydra import GlobalHydra

    from gpt2x.commands.hydra_entry import register_schemas

    if current.startswith("-"):
        return []
    register_schemas()
    flags = ["-m"] if {"-m", "--multirun"} & set(words) else []
    typed = [*flags, *(word for word in words if "=" in word and not word.startswith("-"))]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        plugin = BashCompletion(GlobalHydra.instance().config_loader())
        try:
            return plugin._query(config_name=entry, line=" ".join([*typed, current]))
        except Exception:  # a word before the cursor is wrong, which running the command answers
            return []
