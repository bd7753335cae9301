"""Overrides before Hydra composes them: what cannot be read, cannot work, or would be read as something else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antlr4.error.ErrorListener import ErrorListener
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, RangeSweep
from hydra.grammar.gen.OverrideLexer import CommonTokenStream, InputStream, OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from gpt2x.commands.hydra_values import as_hydra_reads, check_mappings
from gpt2x.config.expected import must_be, type_of
from gpt2x.config.files import SCHEMAS
from gpt2x.config.keys import all_keys, groups, leaves
from gpt2x.config.messages import as_list, quoted, shown, to_type
from gpt2x.config.options import chosen_options, experiments, options, unknown_option
from gpt2x.config.similar import meant_keys
from gpt2x.errors import UserError, did_you_mean

LONGEST_NAME = 200  # characters of a key or an option; file systems reject longer ones
MOST_JOBS = 10_000  # that one range() may give
KEY = re.compile(r"[A-Za-z_$][\w$-]*([./][\w$-]+)*(@[\w$.:-]*)?", re.ASCII)
HYDRA_GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/job_logging", "hydra/hydra_logging", "hydra/help")
PARTNERS = {"(": ")", "[": "]", "{": "}"}


def read_overrides(
    entry: str, overrides: Sequence[str], extra_dirs: Sequence[Path] = (), is_multirun: bool = False
) -> list[str]:
    """Return the overrides as Hydra should get them: it reads each text as what was typed.

    Args:
        entry: `train`, `evaluate`, `predict` or `prepare`.
        overrides: as typed.
        extra_dirs: directories with further options, as of --config-dir.
        is_multirun: whether commas separate the values of jobs.

    Raises:
        UserError: an override cannot be read, or cannot work whatever the configuration is.
    """
    parser = OverridesParser.create()
    check_mappings(entry, overrides)
    return [
        _read(parser, entry, override, readable, extra_dirs)
        for override in with_words(without_no_tracker(entry, overrides))
        for readable in as_hydra_reads(entry, override, is_multirun)
    ]


def without_no_tracker(entry: str, overrides: Sequence[str]) -> list[str]:
    """Return overrides without `tracker=none` if the command has no tracker: it says what is so, in all commands."""
    return [text for text in overrides if text != "tracker=none" or "tracker" in groups(SCHEMAS[entry])]


def with_words(overrides: Sequence[str]) -> list[str]:
    """Return overrides in which the option `debug=nan` is a word; Hydra reads a bare `nan` as a number."""
    is_debug = re.compile(r"\+{0,2}debug=")
    return [re.sub(r"(?<=[=,])nan\b", "'nan'", text) if is_debug.match(text) else text for text in overrides]


def _read(parser: OverridesParser, entry: str, argument: str, readable: str, extra_dirs: Sequence[Path]) -> str:
    """Check an override: as typed, and as Hydra reads it."""
    try:
        override = parser.parse_rule(readable, "override")
    except RecursionError:
        raise UserError(f"{shown(argument)} is nested too deeply; quote it if it is a text.") from None
    except Exception as error:
        raise UserError(unreadable(argument, str(error), SCHEMAS[entry])) from None
    if not override.key_or_group and not override.package:
        raise UserError(f"{shown(argument)} has no key; type KEY=VALUE.")
    if len(override.key_or_group) > LONGEST_NAME:
        raise UserError(f"{shown(argument)}: no key is that long; type KEY=VALUE.")
    if override.key_or_group in ("experiment", "debug") and override.value() is None and not override.is_delete():
        return f"~{override.key_or_group}"  # Hydra does not read null as an option
    _check_group(entry, override)
    _check_sweep(override, extra_dirs)
    _check_hydra(override)
    return readable


def first_values(overrides: Sequence[str]) -> list[str]:
    """Return readable overrides with the first value of each sweep instead of the sweep."""
    words = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        values = override._value
        is_listed = override.is_discrete_sweep() and not isinstance(values, Glob)
        first = next(iter(override.sweep_string_iterator()), "VALUE") if is_listed else "VALUE"
        is_sweep = override.is_sweep_override()
        words.append(f"{override.get_key_element()}={first}" if is_sweep else override.input_line or "")
    return words


# ---- what cannot be read


def unreadable(argument: str, reason: str, root: type) -> str:
    """Return the message for an override that Hydra's grammar rejects.

    Args:
        argument: as typed.
        reason: the parser's own message.
        root: the configuration of the entry point.
    """
    key, equal, value = argument.partition("=")
    name = key.lstrip("+~")
    if not KEY.fullmatch(name) or not equal:
        return _unreadable_key(argument, name, value if equal else None, root)
    function = re.search(r"while evaluating '(.*?)': (.*)", reason, re.DOTALL)
    if function:
        return _unreadable_function(argument, name, value, *function.groups(), root)
    at = position(argument)
    if argument[at - 1 : at + 1] == "${":
        text = quoted(name, value.replace("${", "\\${"))
        fault = f"the reference that begins at character {at} has no name or no }}"
        return f"{shown(argument)}: {fault}; write ${{KEY}}, or for a text {to_type(text)}."
    second = re.search(r"\s([\w.@/]+=\S*)$", argument)
    if second:
        return f"{shown(argument)} is one word with two arguments; quote each by itself, such as {to_type(second[1])}."
    is_text = type_of(name, root) in ("", "str") or type_of(name, root).startswith("list")
    return f"{shown(argument)}: {_fault(argument, at, is_text)}; {_closed(argument) or _fix(name, value, root)}"


def position(argument: str) -> int:
    """Return the index of the character at which an override cannot be read further; its length if it ends early."""
    faults: list[int] = []

    class Listener(ErrorListener):
        def syntaxError(self, recognizer: Any, symbol: Any, line: int, column: int, *rest: Any) -> None:  # noqa: N802
            faults.append(symbol.start if symbol is not None else getattr(rest[-1], "startIndex", column))

    lexer = OverrideLexer(InputStream(argument))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(Listener())
    parser.override()
    return min(faults, default=len(argument))


def _unreadable_key(argument: str, name: str, value: str | None, root: type) -> str:
    if value is None:
        return _no_equal(argument, name, root)
    ending = f"={value}"
    if name.strip() != name and KEY.fullmatch(name.strip()):
        return f"{shown(argument)}: no space may be between key and =; type {to_type(name.strip() + ending)}."
    trimmed = name.strip(".")
    if trimmed != name and trimmed in all_keys(root):
        return f"{shown(argument)}: no dot may be before or after a key; type {to_type(trimmed + ending)}."
    if re.search(r"\[\d+\]|\.\d+$", name):
        return f"{shown(argument)}: elements of a list have no key; give the whole list, such as 'KEY=[a,b]'."
    colon = name.replace(":", ".")
    if colon in all_keys(root):
        return f"{shown(argument)}: parts of a key are joined by dots; type {to_type(colon + ending)}."
    bad = re.search(r"[^\w.$/@-]|[^\x00-\x7f]", name)
    place = f": character {argument.index(bad.group()) + 1} ({shown(bad.group())}) cannot be in a key" if bad else ""
    return f"{shown(argument)} does not begin with a key{place}; type KEY=VALUE, such as seed=1."


def _no_equal(argument: str, name: str, root: type) -> str:
    """What to type instead of a word that is not KEY=VALUE."""
    if not name.strip():
        return f"'{shown(argument)}' is no argument; type KEY=VALUE."
    key, colon, value = name.partition(":")
    if colon and key in all_keys(root):
        return f"{shown(argument)} has a colon; type {to_type(f'{key}={value}')}."
    entry = next(entry for entry, schema in SCHEMAS.items() if schema is root)
    places = [group for group in chosen_options(entry) if name in _options(entry, group)]
    if places:
        return f"{shown(argument)} is not KEY=VALUE; type {places[0]}={name}."
    group, _, option = name.partition("/")
    if group in chosen_options(entry) and option:
        return f"{shown(argument)} is not GROUP=OPTION; type {group}={option.removesuffix('.yaml')}."
    meant = meant_keys(name, root) if name else []
    if meant:
        return f"{shown(argument)} has no value; type {meant[0]}=VALUE."
    return (
        f"{shown(argument)} is not KEY=VALUE; if it belongs to the value before it, quote both: "
        "'KEY=\"a value with spaces\"'."
    )


def _unreadable_function(argument: str, key: str, value: str, call: str, reason: str, root: type) -> str:
    names = sorted(create_functions().functions)
    unknown = re.search(r"Unknown function '(.*?)'", reason)
    text = f"if it is a text, type {to_type(quoted(key, value))}."
    if unknown:
        name = unknown.group(1)
        return (
            f"{shown(argument)}: {name} is not a function of Hydra's command line; {did_you_mean(name, names)}"
            f"functions: {', '.join(names)}; {text}"
        )
    reason = reason.splitlines()[0].replace("mismatch type argument", "wrong argument")
    return f"{shown(argument)}: {shown(call)} cannot be computed ({reason}); {_expected(key, root) or text}"


def _open_brackets(argument: str) -> list[int]:
    stack: list[int] = []
    for index, char in enumerate(argument):
        if char in PARTNERS:
            stack.append(index)
        elif stack and char == PARTNERS[argument[stack[-1]]]:
            stack.pop()
    return stack


def _closed(argument: str) -> str:
    """What to type if only closing brackets are missing, else ''."""
    closing = "".join(PARTNERS[argument[index]] for index in reversed(_open_brackets(argument)))
    try:
        OverridesParser.create().parse_rule(argument + closing, "override")
    except Exception:
        return ""
    return f"type {to_type(argument + closing)}."


def _fault(argument: str, at: int, is_text: bool) -> str:
    """What is wrong at a character, counted from 1 for the user."""
    while at < len(argument) and argument[at].isspace():
        at += 1
    if at >= len(argument):
        is_open = _open_brackets(argument)
        if is_open:
            return f"the {argument[is_open[-1]]} at character {is_open[-1] + 1} is not closed"
        return "it ends too early" if argument[-1:] != "," else "nothing follows the last comma"
    char = argument[at]
    if char in "'\"":
        return f"the quote at character {at + 1} is not closed"
    problem = "can only be in a quoted text" if is_text else "does not belong there"
    return f"character {at + 1} is '{shown(char)}', which {problem}"


def _fix(key: str, value: str, root: type) -> str:
    kind = type_of(key, root)
    if kind.startswith("list") or (value.startswith("[") and kind in ("", "str")):
        inner = value.strip().removeprefix("[").removesuffix("]")
        values = [part.strip().strip("'\"") for part in inner.split(",")]
        if kind == "list[int]":
            return _expected(key, root)
        whole = to_type(as_list(key, [inner.strip().strip("'\"")]))
        if len(values) == 1:
            return f"type {whole}."
        return f"quote each element: type {to_type(as_list(key, values))}, or {whole} if it is a single one."
    if kind and kind != "str":
        return _expected(key, root)
    text = re.sub(r"\$\{(?!\s*[^\s{}][^}]*\})", lambda _: "\\${", _unquoted(value))  # no name or no }: no reference
    return f"type {to_type(quoted(key, text))}."


def _unquoted(value: str) -> str:
    """The text within quotes of which one is missing or hidden."""
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        return value[1:-1]
    return value[1:] if value[:1] in ("'", '"') and value.count(value[0]) == 1 else value


def _expected(key: str, root: type) -> str:
    must = must_be(key, root, "")
    return f"{key} {must}." if must else ""


# ---- what cannot work


def _options(entry: str, group: str) -> list[str]:
    return experiments(entry) if group == "experiment" else options(group)


def _check_group(entry: str, override: Override) -> None:
    """Check the choice of an option of one of the entry's groups."""
    group, value, typed = override.key_or_group, override.value(), shown(override.input_line or "")
    chosen, root = chosen_options(entry), SCHEMAS[entry]
    if override.is_delete() and (
        (group in groups(root) and group not in chosen) or ("." in group and group in leaves(root))
    ):
        raise UserError(
            f"{typed}: the run needs {group}; give a value by {group}{'' if group in leaves(root) else '.KEY'}=VALUE."
        )
    if group not in chosen or isinstance(value, dict) or override.package is not None:
        return
    names = _options(entry, group)
    if override.is_delete():
        if chosen[group] is not None:
            raise UserError(f"{typed}: {group} needs an option; choose {group}=OPTION ({', '.join(names)}).")
        return
    if not override.is_sweep_override():
        values = value if isinstance(value, list) else [value]
        wrong = [one for one in values if not isinstance(one, str) or not 0 < len(one) <= LONGEST_NAME]
        if wrong:
            raise UserError(unknown_option(group, "null" if wrong[0] is None else shown(str(wrong[0])), names))
    if override.is_add() or override.is_force_add():
        fix = f"{group}={override.get_value_string()}"
        raise UserError(f"{typed}: {group} is chosen already, without a plus sign; type {to_type(fix)}.")


def _check_sweep(override: Override, extra_dirs: Sequence[Path]) -> None:
    """Check that a sweep has values, and not too many."""
    if not override.is_sweep_override() or isinstance(override._value, IntervalSweep):
        return
    typed, values = shown(override.input_line or ""), override._value
    if isinstance(values, Glob):
        names = options_of(override.key_or_group, extra_dirs)
        if not names:
            raise UserError(
                f"{typed}: glob() chooses among the options of a group, which {override.key_or_group} is not."
            )
        if not values.filter(names):
            raise UserError(f"{typed} matches no option; options: {', '.join(names)}.")
    elif isinstance(values, RangeSweep):
        count = _count(values)
        if count == 0:
            raise UserError(f"{typed} has no values; range(start,stop,step) ends before stop, and step is not 0.")
        if count > MOST_JOBS:
            raise UserError(f"{typed} has {count:,} values, each a job; give at most {MOST_JOBS:,}.")


def _count(values: RangeSweep) -> int:
    start, stop, step = float(values.start or 0), float(values.stop or 0), float(values.step)
    steps = (stop - start) / step if step else 0.0
    return max(0, int(min(steps, 1e15)) + (steps % 1 > 0)) if steps == steps else 0


def options_of(group: str, extra_dirs: Sequence[Path]) -> list[str]:
    """Return the options of a group, those in further directories included."""
    extra = [path.stem for directory in extra_dirs for path in (directory / group).glob("*.yaml")]
    return sorted({*options(group), *extra})


def _check_hydra(override: Override) -> None:
    """Check the keys of Hydra that would break a run or be ignored."""
    key, value = override.key_or_group, override.value()
    typed = shown(override.input_line or "")
    if key == "hydra":
        raise UserError(f"{typed}: hydra is a group; give its keys a value, such as hydra.run.dir=DIR.")
    if override.is_sweep_override():
        return
    if key.startswith("hydra/") and not isinstance(value, (str, list, dict)) and not override.is_delete():
        raise UserError(f"{typed} is not GROUP=OPTION; --hydra-help lists the options of {key}.")
    group = key.replace(".", "/")
    if group in HYDRA_GROUPS and key != group and isinstance(value, str):
        raise UserError(f"{typed}: an option of {group} is chosen with a slash; type {group}={value}.")
    if key in ("hydra.run.dir", "hydra.sweep.dir") and value in ("", None) and not override.is_delete():
        raise UserError(f"{typed} names no directory; type {key}=DIR.")
    if key == "hydra.job.chdir" and value not in (False, None):
        raise UserError(
            "hydra.job.chdir=true is not supported, since paths on the command line are relative to the directory you "
            "are in; leave it out. The run directory is printed, and hydra.run.dir=DIR chooses it."
        )
    if key == "hydra.searchpath":
        for place in value if isinstance(value, list) else [value]:
            text = str(place)
            if not text.startswith("pkg://") and not Path(text.removeprefix("file://")).is_dir():
                raise UserError(
                    f"hydra.searchpath: {shown(text)} is not a directory; give 'hydra.searchpath=[DIRECTORY]' or "
                    "--config-dir DIRECTORY."
                )
