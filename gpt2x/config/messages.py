"""Errors of Hydra and OmegaConf as messages for the user."""

from __future__ import annotations

import re

from gpt2x.config.keys import all_keys
from gpt2x.config.options import suggestion, unknown_option


def explain(error: BaseException, root: type) -> str:
    """Hydra's or OmegaConf's error in one line: the key, what is wrong, and a did-you-mean.

    Hydra wraps OmegaConf's error, which alone knows the key and the value.
    """
    parts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        parts.append(str(cause))
        cause = cause.__cause__
    message = "\n".join(parts)
    group = re.search(r"(?:Could not find|In '[^']*': Could not find) '([^']+)/([^'/]+)'", message)
    if group:
        folder, option = group.groups()
        known = sorted(re.findall(r"^\t(\S+)$", message, re.MULTILINE))  # those of --config-dir as well
        return unknown_option(folder, option, known)
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
        return f"{key} is not a key or a group of the configuration; {similar_keys(key, root)}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("reference_type=", "object_type=", "full_key:"))]
    lines = [line for line in lines if "HYDRA_FULL_ERROR" not in line]
    override = re.search(r"Error merging override (\S+)", message)
    if override and "is not a ListConfig" in message:
        key, _, value = override.group(1).partition("=")
        return f"{key}={value}: a list is wanted, as '{key}=[\"{value}\"]'"
    if override:
        return f"{override.group(1)}: {lines[-1]}"
    key = f"{full_key.group(1)}: " if full_key else ""
    return key + "; ".join(dict.fromkeys(lines))


def similar_keys(key: str, root: type) -> str:
    """A did-you-mean, or the keys that stand where `key` was looked for."""
    keys = all_keys(root)
    parent = key.rpartition(".")[0]
    siblings = [other for other in keys if other.rpartition(".")[0] == parent and other != key]
    close = suggestion(key, siblings or keys)
    return close.rstrip() or f"keys there: {', '.join(sorted(set(siblings or keys)))}"
