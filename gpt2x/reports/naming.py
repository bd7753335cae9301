"""In which keys runs differ, what runs are called by it, and which of them differ only in their seed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gpt2x.config.keys import spell
from gpt2x.config.options import SCHEMAS
from gpt2x.reports.run import TRAIN, Run
from gpt2x.runtime.files import shortened

LONG_NUMBER = 10  # characters; numbers of a search have 20
SEED, COMMAND = "seed", "command"
# Keys that tell nothing about what a run computes: where it writes and how it is started
UNNAMED = ("paths.", "tracker.", "launch.", "resume", "plan", "output", "num_devices")

Values = Mapping[str, str]


def values_of(run: Run) -> dict[str, str]:
    """Return the configuration of a run by dotted key, values as the command line spells them.

    A job that failed before it had a configuration has only what it varied.
    """
    config = run.config or (overrides_of(run.job.varied) if run.job else {})
    return {COMMAND: run.kind or TRAIN} | {key: spell(value) for key, value in config.items()}


def overrides_of(overrides: Iterable[str]) -> dict[str, Any]:
    """Return overrides `KEY=VALUE` by dotted key; an option of a group is its key `name`."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, _, text = override.lstrip("+~").partition("=")
        is_group = any(key in getattr(schema, "__dataclass_fields__", {}) for schema in SCHEMAS.values())
        is_option = is_group and "." not in key and key not in (SEED, "load", "plan", "resume", "output", "adapters")
        values[f"{key}.name" if is_option else key] = _parsed(text)
    return values


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text.strip("'\"")


def differing_keys(values: Sequence[Values]) -> list[str]:
    """Return the keys whose values differ between runs that have them; options first, then in the schema's order."""
    keys = dict.fromkeys(key for each in values for key in each)
    differing = [key for key in keys if len({each[key] for each in values if key in each}) > 1]
    return sorted(differing, key=lambda key: (key != COMMAND, not key.endswith(".name")))  # stable


def naming_keys(values: Sequence[Values]) -> list[str]:
    """Return the fewest differing keys, in order, that tell all runs apart that differ in more than their seed.

    A key that follows from the keys before it, such as `model.num_layers` from `model.name`, is left out.
    """
    chosen: list[str] = []
    count = 1
    for key in differing_keys(values):
        if key == SEED or key.startswith(UNNAMED):
            continue
        parts = len({tuple(each.get(name, "") for name in (*chosen, key)) for each in values if len(each) > 1})
        if parts > count:
            chosen.append(key)
            count = parts
    return chosen


def labels(values: Sequence[Values], keys: Sequence[str]) -> list[str]:
    """Return what each run is called by `keys`: `model=gpt2_small learning_rate=0.001`; "" without keys."""
    short = short_keys(keys)
    columns = {key: rounded(shortened([each.get(key, "") for each in values])) for key in keys}
    names = []
    for index, each in enumerate(values):
        parts = [
            columns[key][index] if key == COMMAND else f"{short[key]}={columns[key][index]}"
            for key in keys
            if key in each and (key, each[key]) != ("load", "null")
        ]
        names.append(" ".join(parts))
    return names


def rounded(values: list[str]) -> list[str]:
    """Return long numbers with four digits if they stay different, else the values as they are."""
    short = []
    for value in values:
        try:
            short.append(value if len(value) <= LONG_NUMBER else f"{float(value):.4g}")
        except ValueError:
            short.append(value)
    return short if len(set(short)) == len(set(values)) else values


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Return the last word of each key if no other key has it, else the whole key; `model` for `model.name`."""
    words = {key: key.removesuffix(".name") if key.endswith(".name") else key.rpartition(".")[2] for key in keys}
    counts = Counter(words.values())
    return {key: word if counts[word] == 1 else key for key, word in words.items()}


def default_name(run: Run) -> str:
    """Return what a group of runs is called if nothing differs: the model and the data set."""
    parts = [run.config.get("model.name"), run.config.get("dataset.name")]
    return "/".join(str(part) for part in parts if part) or run.path.name


def unique(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """Return the names, each with its directory if several runs share it."""
    counts = Counter(names)
    folders = shortened([f"{run.path.resolve()}{os.sep}"[:-1] for run in runs])
    return [f"{name} ({folder})" if counts[name] > 1 else name for name, folder in zip(names, folders, strict=True)]
