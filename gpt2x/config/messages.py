"""Errors of Hydra and OmegaConf as messages for the user."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from omegaconf.errors import GrammarParseError

from gpt2x.config.expected import must_be, type_of
from gpt2x.config.keys import REPLACED, groups, leaves
from gpt2x.config.mappings import as_typed, is_mapping
from gpt2x.config.options import options, unknown_option
from gpt2x.config.similar import similar_keys
from gpt2x.errors import did_you_mean

NOISE = ("reference_type=", "object_type=", "full_key:")  # lines of OmegaConf about its own objects
LONGEST = 120  # characters of an argument that a message repeats
EXTRA = ("joblib", "submitit_local", "submitit_slurm", "optuna")  # launchers and sweepers of the extra [sweep]
OTHER_PLUGINS = {"ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper", "ray": "hydra-ray-launcher",
                 "rq": "hydra-rq-launcher", "colorlog": "hydra-colorlog"}  # fmt: skip


def message_of(error: BaseException, root: type) -> str:
    """Return an error of Hydra or OmegaConf as one line: the key or argument, what is wrong, and what to type.

    Args:
        error: Hydra's, which wraps OmegaConf's error; only the latter names the key and the value.
        root: the configuration of the entry point, whose keys are suggested.
    """
    chain = _chain(error)
    message = "\n".join(chain)
    override = next((text.removeprefix(MERGING) for text in chain if text.startswith(MERGING)), "")
    if isinstance(error, GrammarParseError) or isinstance(error.__cause__, GrammarParseError):
        return _bad_reference(override or _full_key(message))
    for pattern, answer in ANSWERS:
        match = re.search(pattern, message, re.DOTALL)
        if match:
            return answer(match, root)
    full_key = _full_key(message)
    file = re.search(r"^In '([^']+)': (?!Could not find)", message, re.MULTILINE)
    where = f"{file.group(1)}.yaml: " if file else ""
    unknown = (
        re.search(r"Could not override '([^']+)'", message)
        or re.search(r"(?:Key|key) '([^']+)' (?:is )?not in", message)
        or re.search(r"No match in the defaults list for '([^']+)'", message)
    )
    if unknown and not re.search("not converted|Cannot convert|could not be converted", message):
        key = unknown.group(1)
        if full_key.endswith(key) or full_key.startswith(f"{key}."):  # the latter in KEY={a:b}
            key = full_key
        return where + _unknown_key(key, root)
    return where + (_about_override(override, message, root) or _about_value(message, full_key, root))


def shown(argument: str) -> str:
    """Return an argument for a message: on one line, its middle left out if it is long."""
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in argument)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 20]}…{text[-19:]}"


def to_type(argument: str) -> str:
    """Return an argument as it is typed into a POSIX shell."""
    return shown(shlex.quote(argument))


def quoted(key: str, value: str) -> str:
    """Return KEY="VALUE" as Hydra reads it: any text, except that ${ begins a reference."""
    escaped = re.sub(r'(\\*)("|\Z)', lambda match: match.group(1) * 2 + match.group(2).replace('"', '\\"'), value)
    return f'{key}="{escaped}"'


def as_list(key: str, values: list[str]) -> str:
    """Return KEY=["VALUE", …] as Hydra reads it."""
    return f"{key}=[{','.join(quoted('', value)[1:] for value in values)}]"


# ---- one answer per message of Hydra


def _no_option(match: re.Match, root: type) -> str:
    group, name = match.groups()
    names = sorted(re.findall(r"^\t(\S+)$", match.string, re.MULTILINE))  # those of --config-dir as well
    if group in ("hydra/launcher", "hydra/sweeper") and name in EXTRA:
        return f"{group}={name} is not installed; pip install 'gpt2x[sweep]' brings it. Installed: {', '.join(names)}."
    if group.startswith("hydra/") and name in OTHER_PLUGINS:
        return (
            f"{group}={name} is not installed; it is in {OTHER_PLUGINS[name]}, which gpt2x does not test. "
            f"Installed: {', '.join(names)}."
        )
    parts = [other for other in names if name and name in other.split("_")]  # slurm: submitit_slurm
    if parts and not did_you_mean(name, names):
        return f"{group}={name} is not an option; did you mean {' or '.join(parts)}? options: {', '.join(names)}."
    return unknown_option(group, name, names)


def _several_values(match: re.Match, root: type) -> str:
    return several_values(match.group(1), root)


def several_values(argument: str, root: type) -> str:
    """Return the message for an argument of a single run with values for several runs."""
    key, _, value = argument.partition("=")
    key, values = key.lstrip("+"), [part.strip() for part in value.split(",")]
    kind = type_of(key, root)
    if kind.startswith("list"):
        other = f"for one list type {to_type(as_list(key, values))}"
    elif kind == "str":
        other = f"for one text type {to_type(quoted(key, value))}"
    elif kind == "float" and re.fullmatch(r"\d+,\d+", value):
        other = f"for one decimal number type {key}={value.replace(',', '.')}"
    elif key == "experiment":
        other = f"to combine them type {to_type(f'{key}=[{value}]')}"
    else:
        other = "give one value"
    return f"{shown(argument)} has {len(values)} values; add -m to run one job for each, or {other}."


def _needs_multirun(match: re.Match, root: type) -> str:
    return f"{shown(match.group(1))} stands for several values; add -m to run one job for each, or give one value."


def _swept_hydra(match: re.Match, root: type) -> str:
    return f"{shown(match.group(1))}: jobs cannot differ in keys of hydra; give one value."


def _no_interval(match: re.Match, root: type) -> str:
    return (
        "interval() has no list of values, so a grid cannot run it; list them as choice(1e-4,3e-4) or range(1,10,3), "
        "or search with hydra/sweeper=optuna."
    )


def _exists(match: re.Match, root: type) -> str:
    return f"+{shown(match.group(2))}: {match.group(1)} exists already; type {to_type(match.group(2))}."


def _nothing_to_delete(match: re.Match, root: type) -> str:
    key = match.group(1).partition("=")[0]
    return f"~{match.group(1)} deletes nothing: {_unknown_key(key, root)}"


def _different_value(match: re.Match, root: type) -> str:
    key, value, typed = match.groups()
    return f"~{key}={typed}: {key} is {value}; type ~{key} to delete it whatever its value."


def _no_group(match: re.Match, root: type) -> str:
    return _unknown_key(match.group(2), root)


def _forced_group(match: re.Match, root: type) -> str:
    return f"{shown(match.group(1))}: an option of a group is chosen by {to_type(match.group(1).lstrip('+'))}."


def _unset(match: re.Match, root: type) -> str:
    name, key = match.group(1), _at(match.string)
    return f"{key}the environment variable {name} is not set; set it, or write ${{oc.env:{name},DEFAULT}}."


def _no_resolver(match: re.Match, root: type) -> str:
    return (
        f"{_at(match.string)}${{{shown(match.group(1))}:…}} is nothing that gpt2x knows; there are "
        "${oc.env:NAME}, ${now:%Y-%m-%d} and references to keys such as ${model.name}."
    )


def _no_reference(match: re.Match, root: type) -> str:
    name = match.group(1)
    return f"{_at(match.string)}${{{shown(name)}}} names no key; {similar_keys(name, root)} For a text, write \\${{."


def _circle(match: re.Match, root: type) -> str:
    return f"{_at(match.string)}its ${{…}} leads back to itself; give a value."


def _null_reference(match: re.Match, root: type) -> str:
    key = _full_key(match.string)
    return f"{key}={match.group(1)} is null; {key} {must_be(key, root, 'null') or 'cannot be null'}."


def _no_callback(match: re.Match, root: type) -> str:
    return f"{_at(match.string)}{match.group(1)} cannot be imported; give the dotted name of a class that is installed."


def _no_primary(match: re.Match, root: type) -> str:
    return (
        f"there is no {match.group(1)}.yaml; with --config-path the options of gpt2x are not read: --config-dir adds a "
        "directory to them."
    )


def _bad_reference(place: str) -> str:
    return (
        f"{shown(place)}: a reference is written ${{KEY}} or ${{oc.env:NAME}}; in a text, write \\${{ for the two "
        "characters."
    )


Answer = Callable[[re.Match, type], str]
MERGING = "Error merging override "
ANSWERS: list[tuple[str, Answer]] = [
    (r"(?:Could not find|In '[^']*': Could not find) '([^'\n]+)/([^'/\n]*)'", _no_option),
    (r"Ambiguous value for argument '(.*)'\n1\. To use", _several_values),
    (r"Sweep parameters '(.*)' requires --multirun", _needs_multirun),
    (r"Sweeping over Hydra's configuration is not supported : '(.*)'", _swept_hydra),
    (r"does not support sweep type : INTERVAL_SWEEP", _no_interval),
    (r"already at '([^']*)'\.\s+Either remove \+ prefix: '(.*?)'\n", _exists),
    (r"Could not delete from config\. '([^']+)' does not exist", _nothing_to_delete),
    (r"Could not delete '([^']+)'\. No match in the defaults list", _nothing_to_delete),
    (r"The value of '([^']+)' is (.*) and not\s+(.*)\.$", _different_value),
    (r"Override (.*) looks like a config group override, but config group '([^']+)' does not", _no_group),
    (r"force-add of config groups is not supported: '(.*)'", _forced_group),
    (r"Environment variable '([^']+)' not found", _unset),
    (r"Unsupported interpolation type (\S+)", _no_resolver),
    (r"Interpolation key '([^']+)' not found", _no_reference),
    (r"Recursive interpolation detected", _circle),
    (r"Error loading '([^']*)'", _no_callback),
    (r"Could not load '([^']+)'", _no_primary),
    (r"While dereferencing interpolation '(.*?)': Incompatible value 'None'", _null_reference),
]


# ---- values


def _about_override(argument: str, message: str, root: type) -> str:
    """What is wrong with KEY=VALUE, if the key is one of the entry's; else ''."""
    key, _, value = argument.lstrip("+").partition("=")
    typed = leaves(root)
    if key in typed:
        evaluated = re.search(r"Value '(.*)' of type '(?:float|int|bool|str)'", message, re.DOTALL)
        if type_of(key, root).startswith("list") and value and value[0] not in "[{":
            return f"{shown(argument)} must be a list; type {to_type(as_list(key, [value]))}."
        if type_of(key, root) == "str" and value:
            return f"{shown(argument)} must be a text; type {to_type(quoted(key, value))}."
        return f"{shown(argument)} {must_be(key, root, evaluated.group(1) if evaluated else value)}."
    if key in groups(root):
        one = f"{key}.{next(iter(leaves(groups(root)[key])))}"
        choose = f"choose {key}=OPTION ({', '.join(options(key))}), or " if options(key) else ""
        return f"{shown(argument)}: {key} is a group; {choose}give its keys a value, such as {one}=VALUE."
    parent = next((name for name in typed if key.startswith(f"{name}.")), None)
    if parent and is_mapping(typed[parent]):
        entry = as_typed(key.removeprefix(f"{parent}."))
        return f"{parent}: its key {shown(entry)} has the value {shown(value)}, which must be a text."
    if parent:
        return f"{shown(argument)}: {parent} has no keys below it; type {parent}=VALUE."
    return f"{shown(argument)}: {_last_line(message).rstrip('.')}." if argument else ""


def _about_value(message: str, full_key: str, root: type) -> str:
    value = re.search(r"Value '(.*)' of type|Value '(.*)' is not a valid bool", message)
    if full_key in leaves(root) and value:
        spelled = value.group(1) or value.group(2)
        return f"{full_key}={shown(spelled)} {must_be(full_key, root, spelled)}."
    if full_key in leaves(root) and "is not Optional" in message:
        return f"{full_key}=null {must_be(full_key, root, 'null')}."
    lines = "; ".join(dict.fromkeys(_lines(message))).rstrip(".") + "."
    return f"{full_key}: {lines}" if full_key else lines


def _unknown_key(key: str, root: type) -> str:
    if key in REPLACED:
        return REPLACED[key]
    if "tracker" not in groups(root) and key.partition(".")[0] == "tracker":
        return f"{key}: this command has no tracker; train.py and evaluate.py have one. Leave it out."
    if key.startswith("hydra."):
        prefix = "+" if key.startswith("hydra.callbacks.") else ""
        fix = f"type +{key}=VALUE to add it" if prefix else "--cfg hydra shows its keys"
        return f"{key} is not a key of Hydra's configuration; {fix}."
    if key.startswith("hydra/"):
        return f"Hydra has no group {key}; --hydra-help lists its groups."
    group = key.partition("@")[0]
    if group != key:
        return f"{key}: options of gpt2x have one place each; type {group}=OPTION, without @."
    return f"{shown(key)} is not a key or a group of the configuration; {similar_keys(key, root)}"


def _full_key(message: str) -> str:
    match = re.search(r"full_key: (\S+)", message)
    return match.group(1) if match else ""


def _at(message: str) -> str:
    key = _full_key(message)
    return f"{key}: " if key else ""


def _lines(message: str) -> list[str]:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return [shown(line) for line in lines if not line.startswith(NOISE) and "HYDRA_FULL_ERROR" not in line]


def _last_line(message: str) -> str:
    return _lines(message)[-1]


def _chain(error: BaseException | None) -> list[str]:
    """The messages of an error and of what caused it."""
    return [str(error), *_chain(error.__cause__)] if error else []
