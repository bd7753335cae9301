"""The flags of a command line that Hydra reads, checked before Hydra answers them in its own way."""

from __future__ import annotations

import argparse
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.utils import get_args_parser

from gpt2x.commands.hydra_grammar import first_values, read_overrides
from gpt2x.config.keys import all_keys, groups
from gpt2x.config.messages import shown, to_type
from gpt2x.config.options import CONF, SCHEMAS
from gpt2x.config.similar import either, meant_keys
from gpt2x.errors import UserError, did_you_mean
from gpt2x.runtime.console import stderr

COMMANDS = {"run": "--run", "multirun": "-m", "cfg": "--cfg", "info": "--info", "shell_completion": "-sc"}
SHELLS = ("bash", "fish", "zsh")


def read_arguments(name: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line as Hydra should get it: flags, then overrides, wherever they were typed.

    Args:
        name: of the entry: `train`, `evaluate`, `predict` or `prepare`.
        arguments: those after the name of the command.

    Raises:
        UserError: a flag or an override cannot be read, or cannot work.
    """
    parser = get_args_parser()
    parser.error = _flag_error  # type: ignore[method-assign]
    overrides, flags = split(name, parser, arguments)
    args = parser.parse_args([*overrides, *flags])
    if args.shell_completion:
        _check_commands(name, args)
        _check_completion(name, overrides)
        return [*flags, *overrides]
    flags = _with_config(name, args, flags)
    is_multirun = args.multirun or "hydra.mode=MULTIRUN" in overrides
    extra_dirs = [Path(args.config_dir)] if args.config_dir else []
    args.overrides = read_overrides(name, overrides, extra_dirs, is_multirun)
    _check_commands(name, args)
    return [*flags, *args.overrides]


def split(name: str, parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides and the flags with their values, each in the order in which they were typed.

    Raises:
        UserError: there is no such flag.
    """
    actions = {option: action for action in parser._actions for option in action.option_strings}
    overrides, flags = [], []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        if word == "--":
            continue
        flag = word.partition("=")[0]
        if flag not in actions:
            raise UserError(_unknown_flag(name, word, rest, list(actions)))
        action, has_value = actions[flag], "=" in word
        follows = bool(rest) and not has_value and not rest[0].startswith("-")
        if action.nargs == "?" and not has_value:  # joined, so that no override is taken for its value
            value = rest.pop(0) if follows and not re.search("[=~]", rest[0]) else action.const
            flags.append(f"{flag}={value}")
        else:
            flags += [word, *([rest.pop(0)] if follows and action.nargs is None else [])]
    return overrides, flags


def _unknown_flag(name: str, word: str, rest: list[str], flags: list[str]) -> str:
    """Say which KEY=VALUE a word such as --learning-rate means, or which flag."""
    key, equal, value = word.lstrip("-").partition("=")
    if not equal:
        value = rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else "VALUE"
    near = did_you_mean(word.partition("=")[0], [flag for flag in flags if flag.startswith("--")])
    meant = meant_keys(key, SCHEMAS[name]) if key and not near else []
    if meant:
        typed = either([to_type(f"{one}={value}") for one in meant[:4]])
        return f"{shown(word)} is not a flag; keys are typed as KEY=VALUE: {typed}."
    return f"{shown(word)} is not a flag; {near}keys are typed as KEY=VALUE, and --help lists them."


def _flag_error(message: str) -> NoReturn:
    text = re.sub(r"^argument (\S+?)(/\S+)?: ", r"\1: ", message)
    raise UserError(f"{text}; --help shows the flags.")


def _check_commands(name: str, args: Any) -> None:
    """Check which flags are given together."""
    given_flags = [flag for attribute, flag in COMMANDS.items() if getattr(args, attribute)]
    if args.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun is not supported: it reads a pickle, which can run anything, and writes into the old "
            "run's directory; type the line of that directory's command.txt again."
        )
    if args.multirun and args.cfg:
        words = " ".join(["gpt2x", name, *map(to_type, first_values(args.overrides)), "--cfg", args.cfg])
        raise UserError(f"--cfg shows one configuration, -m makes several; leave out -m, as in {words}.")
    if len(given_flags) > 1:
        raise UserError(f"{' and '.join(given_flags)} cannot be given together; leave out one of them.")
    if not args.cfg and (args.resolve or args.package is not None):
        flag = "--resolve" if args.resolve else "--package"
        raise UserError(f"{flag} belongs to --cfg; type --cfg job {flag}{'' if args.resolve else ' GROUP'}.")
    if args.package is not None:
        _check_package(name, args.package)


def _check_package(name: str, package: str) -> None:
    keys = all_keys(SCHEMAS[name])
    names = groups(SCHEMAS[name])
    if package.split(".")[0] in ("hydra", "_global_") or package in names:
        return
    if package in keys:  # Hydra would print its value, but reject null
        group = package.rpartition(".")[0]
        raise UserError(
            f"--package {package} is a key; {f'show its group by -p {group}' if group else 'leave it out'}."
        )
    meant = meant_keys(package, SCHEMAS[name])
    fix = f"did you mean {either(meant[:4])}?" if meant else f"groups are: {', '.join(names)}."
    raise UserError(f"--package {shown(package)} is not a group of the configuration; {fix}")


def _check_completion(name: str, overrides: list[str]) -> None:
    commands = [word.partition("=") for word in overrides]
    if len(commands) != 1 or commands[0][0] not in ("install", "uninstall") or commands[0][2] not in SHELLS:
        raise UserError(
            f"--shell-completion takes install=SHELL or uninstall=SHELL ({', '.join(SHELLS)}), and prints what your "
            f'shell evaluates: eval "$(gpt2x {name} -sc install=bash)".'
        )


def _with_config(name: str, args: Any, flags: list[str]) -> list[str]:
    """Check the directories and the name of the configuration; make them absolute, as the user's shell means them."""
    extra = _directory("--config-dir", args.config_dir)
    conf = CONF if args.config_path is None else _directory("--config-path", args.config_path)
    if args.config_name is not None:
        _check_name(name, args.config_name, [place for place in (conf, extra) if place])
    elif conf is not None and not (conf / f"{name}.yaml").is_file():
        raise UserError(
            f"--config-path {shown(args.config_path)} has no {name}.yaml; it replaces all options of gpt2x, and "
            "--config-dir DIR adds to them."
        )
    if conf != CONF and conf is not None:
        return [*flags, "--config-path", str(conf)]
    return flags


def _directory(flag: str, typed: str | None) -> Path | None:
    if typed is None or (flag == "--config-path" and typed.startswith("pkg://")):
        return None
    path = Path(os.path.abspath(Path(typed).expanduser()))
    if not path.is_dir():
        raise UserError(f"{flag} {shown(typed)} is not a directory; give one with GROUP/NAME.yaml.")
    return path


def _check_name(name: str, typed: str, places: list[Path]) -> None:
    config = typed.removesuffix(".yaml")
    names = sorted({path.stem for place in places for path in place.glob("*.yaml")})
    if not any((place / f"{config}.yaml").is_file() for place in places):
        raise UserError(
            f"--config-name {shown(typed)}: there is no {shown(config)}.yaml; {did_you_mean(config, names)}"
            f"names: {', '.join(names)}."
        )
    if config != name and config in SCHEMAS:
        raise UserError(f"--config-name {config} is the configuration of a different command; type gpt2x {config}.")


@contextmanager
def plain_answers() -> Iterator[None]:
    """Answer what Hydra itself does not: a YAML file that cannot be read, and its warnings, which show source lines.

    Raises:
        UserError: a file of options is not YAML, or a mapping is where OmegaConf cannot put it.
    """
    show = warnings.showwarning

    def show_plainly(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        if f"{os.sep}hydra{os.sep}" in filename:
            stderr.warn(shown(" ".join(str(message).split())))
        else:
            show(message, category, filename, *rest, **named)

    warnings.showwarning = show_plainly
    try:
        yield
    except (AttributeError, AssertionError) as error:  # OmegaConf's, for a mapping beside null
        if not _is_of_omegaconf(error):
            raise
        key = re.search(r"full_key: (\S+)", str(error))
        name = key.group(1) if key else "a key on the command line"
        raise UserError(
            f"{name}: Hydra cannot put a mapping in place of null; leave out {name}=null, or its line in a file of "
            "options."
        ) from None
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or "it cannot be read"
        file = Path(mark.name) if mark else Path()
        file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        place = f"{file}, line {mark.line + 1}" if mark else "a file of options"
        raise UserError(f"{place}: not YAML ({problem}); check its indentation, colons and quotes.") from None
    finally:
        warnings.showwarning = show


def _is_of_omegaconf(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and f"{os.sep}omegaconf{os.sep}" in trace.tb_frame.f_code.co_filename
