"""Values of texts, paths, lists of texts and mappings, in the form that Hydra's grammar reads as what was typed.

Hydra rejects many characters outside quotes, such as ~ # & ; ' and every letter beyond ASCII, and reads `1e3` as a
number. For a key whose value is a text there is only one meaning, so gpt2x quotes it. Hydra keeps the meaning of
quotes, commas, brackets at both ends, `null`, `${…}`, its functions, and of a backslash before one of ()[]{}:=, or a
blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import QuotedString, Sweep

from gpt2x.config.files import SCHEMAS
from gpt2x.config.keys import Leaf, leaves
from gpt2x.config.mappings import is_flat, is_mapping, through_hydra
from gpt2x.config.messages import quoted, several_values, shown
from gpt2x.errors import UserError, did_you_mean

HYDRA_TEXTS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.name")
HYDRA_LISTS = ("hydra.searchpath",)
UNREADABLE = object()
EMPTY = '""'
Rewrite = Callable[[str], str]


def as_hydra_reads(entry: str, argument: str, is_multirun: bool) -> list[str]:
    """Return an override in the form that Hydra reads as what was typed; a mapping becomes an override per key.

    An override that means something else, or that nobody can read, is returned as it is.

    Args:
        entry: `train`, `evaluate`, `predict` or `prepare`.
        argument: as typed.
        is_multirun: whether commas separate the values of jobs.

    Raises:
        UserError: a single run has several values, or a mapping names a key twice.
    """
    key, equal, value = argument.partition("=")
    name = key.lstrip("+")
    if not equal or key.startswith("~"):
        return [argument]
    leaf, rest = _leaf_and_rest(entry, name)
    if leaf and rest:
        return [_entry(entry, leaf, rest, value, is_multirun, argument)]
    if leaf and is_mapping(leaf):
        return _mapping(leaf, value, argument)
    kind = leaf.type.removesuffix(" | None") if leaf and not leaf.facts.names() else ""
    if kind == "str" or name in HYDRA_TEXTS:
        return [f"{key}={_each(text, value, is_multirun, argument, entry)}"]
    if kind == "list[str]" or name in HYDRA_LISTS:
        is_path = leaf is None or leaf.facts.is_path
        return [f"{key}={_each(lambda part: texts(part, is_path), value, True, argument, entry)}"]
    return [argument]


def _leaf_and_rest(entry: str, name: str) -> tuple[Leaf | None, str]:
    """A key of the configuration; or that of a mapping, and the key within it."""
    typed = leaves(SCHEMAS[entry])
    if name in typed:
        return typed[name], ""
    for leaf in typed.values():
        if is_mapping(leaf) and name.startswith(f"{leaf.name}."):
            return leaf, name.removeprefix(f"{leaf.name}.")
    return None, ""


def _each(rewrite: Rewrite, value: str, is_multirun: bool, argument: str, entry: str) -> str:
    """Rewrite each of the values that commas separate, if there are several."""
    choice = re.fullmatch(r"[ \t]*choice[ \t]*\((.*)\)[ \t]*", value, re.DOTALL)  # which would lose quotes
    values = split(choice[1] if choice else value, ",")
    changed = [rewrite(one) for one in values]
    if changed == values:
        return value
    if len(values) > 1 and not is_multirun:
        raise UserError(several_values(argument, SCHEMAS[entry]))
    return ",".join(changed)


# ---- texts


def text(typed: str) -> str:
    """Return a text, as typed without quotes, in the form that Hydra reads as this text."""
    typed = without_blanks(typed)
    if not typed or typed[0] in "'\"":  # Hydra's own quotes, perhaps not closed
        return typed
    call = re.fullmatch(r"(\w+)[ \t]*\((.*)\)", typed, re.DOTALL)
    value = element(typed)
    if call and (call[1] in _functions() or did_you_mean(call[1], _functions())):
        return typed
    if value is UNREADABLE:
        return typed if re.search(r"\$\{(?![^}]*\})", typed) else _quoted(meant(typed))
    if value is None or isinstance(value, QuotedString | list | dict | Sweep):
        return typed
    return typed if str(value) == meant(typed) else _quoted(meant(typed))


def texts(typed: str, is_path: bool) -> str:
    """Return a list of texts in the form that Hydra reads as these texts.

    A comma before a blank may belong to a sentence, so such a list is changed only if it has paths, or if Hydra can
    read it.
    """
    typed = typed.strip(" \t")
    if len(typed) < 2 or typed[0] != "[" or typed[-1] != "]":
        return typed
    values = split(typed[1:-1], ",")
    is_sentence = any(one[:1].isspace() for one in values[1:])
    if is_sentence and not is_path and element(typed) is UNREADABLE:
        return typed
    changed = [text(one) for one in values]
    return typed if changed == values else f"[{','.join(changed)}]"


def without_blanks(typed: str) -> str:
    """Return a value without the blanks at its ends; a blank after a backslash belongs to it."""
    inner = typed.strip(" \t")
    cut = typed.lstrip(" \t")[len(inner) :]
    escapes = len(inner) - len(inner.rstrip("\\"))
    return inner + cut[0] if cut and escapes % 2 else inner


def meant(typed: str) -> str:
    """Return what a text without quotes means: a backslash before a sign of Hydra's grammar is left out.

    Two backslashes stay two, as they do in quotes.
    """
    return re.sub(r"\\([\\()\[\]{}:=, \t])", lambda pair: pair[0] if pair[1] == "\\" else pair[1], typed)


def element(typed: str) -> Any:
    """Return a single value as Hydra reads it, or UNREADABLE."""
    try:
        return _parser().parse_rule(f"key={typed}", "override")._value
    except Exception:
        return UNREADABLE


def _quoted(text: str) -> str:
    return quoted("", text).removeprefix("=")


@cache
def _parser() -> OverridesParser:
    return OverridesParser.create()


@cache
def _functions() -> list[str]:
    return sorted(create_functions().functions)


def split(typed: str, separator: str) -> list[str]:
    """Split at a separator that is neither in quotes, nor in brackets, nor after a backslash.

    As in Hydra's grammar, quotes begin only at the beginning of a value.
    """
    values, depth, start, index = [], 0, 0, 0
    while index < len(typed):
        char = typed[index]
        if char == "\\":
            index += 1
        elif char in "'\"" and typed[:index].rstrip(" \t")[-1:] in ("", separator, *",:[{("):
            index = _end_of_quotes(typed, index)
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth = max(0, depth - 1)
        elif char == separator and depth == 0:
            values.append(typed[start:index])
            start = index + 1
        index += 1
    return [*values, typed[start:]]


def _end_of_quotes(typed: str, start: int) -> int:
    """The index of the closing quote; that of the opening one if there is none."""
    index = start + 1
    while index < len(typed):
        if typed[index] == "\\":
            index += 1
        elif typed[index] == typed[start]:
            return index
        index += 1
    return start


# ---- mappings


def check_mappings(entry: str, overrides: Sequence[str]) -> None:
    """Check that no mapping is null and has keys: Hydra puts no key into null.

    Raises:
        UserError: one does.
    """
    keys = [argument.lstrip("+").partition("=") for argument in overrides]
    for name, leaf in leaves(SCHEMAS[entry]).items():
        if is_mapping(leaf) and (name, "=", "null") in keys:
            entries = [key for key, _, value in keys if key.startswith(f"{name}.") or (key == name and value != "null")]
            if entries:
                raise UserError(f"{name}=null and {shown(entries[0])} are both there; leave out {name}=null.")


def _mapping(leaf: Leaf, value: str, argument: str) -> list[str]:
    """`KEY={A: x, B: y}` as one override per key; several mappings of a sweep as mappings that Hydra can read."""
    values = [one.strip(" \t") for one in split(value, ",")]
    mappings = [entries for one in values if (entries := _entries(leaf, one, argument))]
    if len(mappings) < len(values):
        return [argument]
    if len(values) == 1:
        return [f"{leaf.name}.{through_hydra(key, True)}={one}" for key, one in mappings[0].items()]
    inner = [
        ",".join(f"{through_hydra(key, False)}:{one or EMPTY}" for key, one in entries.items()) for entries in mappings
    ]
    return [f"{leaf.name}={','.join(f'{{{one}}}' for one in inner)}"]


def _entries(leaf: Leaf, typed: str, argument: str) -> dict[str, str] | None:
    """The keys between braces, as they are meant, and their values, as Hydra reads them; None if that is no mapping."""
    if len(typed) < 2 or typed[0] != "{" or typed[-1] != "}":
        return None
    entries: dict[str, str] = {}
    for pair in split(typed[1:-1], ",") if typed[1:-1].strip() else []:
        key, *values = split(pair, ":")
        if not values:
            return None
        name, one = _key(key), ":".join(values).strip(" \t")
        if name in entries:
            raise UserError(f"{shown(argument)}: the key {shown(name)} is there twice; give it once.")
        entries[name] = text(one) if is_flat(leaf) else one
    return entries


def _key(typed: str) -> str:
    """A key of a mapping as it was meant, in quotes or without."""
    value = element(typed)
    return value.text if isinstance(value, QuotedString) else meant(without_blanks(typed))


def _entry(entry: str, leaf: Leaf, rest: str, value: str, is_multirun: bool, argument: str) -> str:
    """`KEY.A=x` as Hydra reads it: A may have dots, or letters that no key of Hydra's has."""
    if not is_flat(leaf):
        return argument
    return f"{leaf.name}.{through_hydra(_key(rest), True)}={_each(text, value, is_multirun, argument, entry)}"
