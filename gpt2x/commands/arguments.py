"""Command lines that Hydra does not read: errors in gpt2x's one form, and types of arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from gpt2x.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError with the command whose --help has the answer."""
        raise UserError(f"{message}; see {self.prog} --help.")


def path(text: str) -> Path:
    """Return the path as the user's shell would read it."""
    return Path(text).expanduser()
