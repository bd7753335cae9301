"""Errors of Hydra and OmegaConf as messages for the user."""

from __future__ import annotations

import re

from gpt2x.config.keys import REPLACED, all_keys, groups
from gpt2x.config.options import unknown_option
from gpt2x.errors import did_you_mean

NOISE = ("reference_type=", "object_type=", "full_key:")  # lines of OmegaConf about its own objects


def message_of(error: BaseException, root: type) -> str:
    """Return an error of Hydra or OmegaConf as one line: the key, what is wrong, and a did-you-mean.

    Args:
        error: Hydra's, which wraps OmegaConf's error; only the latter names the key and the value.
        root: the configuration of the entry point, whose keys are suggested.
    """
    message = "\n".join(_chain(error))
    option = re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)/([^'/]+)'", message)
    if option:
        group, name = option.groups()
        names = sorted(re.findall(r"^\t(\S+)$", message, re.MULTILINE))  # those of --config-dir as well
        return unknown_option(group, name, names)
    full_key = re.search(r"full_key: (\S+)", message)
    unknown = (
        re.search(r"Could not override '([^']+)'", message)
        or re.search(r"(?:Key|key) '([^']+)' (?:is )?not in", message)
        or re.search(r"No match in the defaults list for '([^']+)'", message)
    )
    if unknown and "not converted" not in message and "Cannot convert" not in message:
        key = unknown.group(1)
        if full_key and full_key.group(1).endswith(key):
            key = full_key.group(1)
        if key in REPLACED:
            return REPLACED[key]
        if "tracker" not in groups(root) and key.partition(".")[0] == "tracker":
            return f"{key}: this command has no tracker; train.py and evaluate.py have one. Leave it out."
        return f"{key} is not a key or a group of the configuration; {similar_keys(key, root)}"
    return _about_a_value(message, full_key.group(1) if full_key else "")


def _about_a_value(message: str, full_key: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(NOISE) and "HYDRA_FULL_ERROR" not in line]
    override = re.search(r"Error merging override (\S+)", message)
    if override and "is not a ListConfig" in message:
        key, _, value = override.group(1).partition("=")
        return f"{key}={value} must be a list; give '{key}=[\"{value}\"]'."
    if override:
        return f"{override.group(1)}: {lines[-1]}"
    return (f"{full_key}: " if full_key else "") + "; ".join(dict.fromkeys(lines))


def similar_keys(key: str, root: type) -> str:
    """Return a did-you-mean, or the keys beside which `key` was looked for."""
    keys = all_keys(root)
    parent = key.rpartition(".")[0]
    siblings = [other for other in keys if other.rpartition(".")[0] == parent and other != key]
    return did_you_mean(key, siblings or keys).rstrip() or f"keys there: {', '.join(sorted(set(siblings or keys)))}."


def _chain(error: BaseException | None) -> list[str]:
    """The messages of an error and of what caused it."""
    return [str(error), *_chain(error.__cause__)] if error else []
