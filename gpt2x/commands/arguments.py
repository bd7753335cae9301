"""Command lines that Hydra does not read: errors in gpt2x's one form, and types of arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from gpt2x.config.locations import expanded
from gpt2x.errors import RunError, UserError
from gpt2x.runtime.console import show_error


def for_each(directories: Iterable[Path], work: Callable[[Path], None]) -> None:
    """Do `work` for each directory; one that fails does not keep the others from it.

    Raises:
        RunError: one failed; its error has been shown.
    """
    has_failed = False
    for directory in directories:
        try:
            work(directory)
        except UserError as error:
            show_error(str(error))
            has_failed = True
    if has_failed:
        raise RunError(status=2)


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the command whose --help has the answer."""
        raise UserError(f"{message}; see {self.prog} --help.")


def path(text: str) -> Path:
    """Return the path as the user's shell would read it.

    Raises:
        ArgumentTypeError: the path is empty, or its `~user` names nobody.
    """
    return Path(location(text))


def location(text: str) -> str:
    """Return a path that may instead be a name, such as that of a hub repository, as `path` does.

    Raises:
        ArgumentTypeError: as `path`.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("the path is empty; give a path")
    try:
        return expanded(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error).rstrip(".")) from None
