"""Errors, and how a run ends that does not succeed (imports nothing of gpt2x)."""

import difflib
from collections.abc import Iterable, Sequence


class UserError(ValueError):
    """A mistake that the user can correct. The message names the key, the value and the fix.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """


class NothingLeftError(UserError):
    """A run was resumed that has no step left."""


class RunError(Exception):
    """A run failed, and the reason has been shown.

    Attributes:
        status: the exit status of the entry point: 2 after a user's mistake, else 1.
    """

    def __init__(self, message: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return 'did you mean X? ' for the choice that is spelled most like `word`, or '' if none is similar."""
    lowered = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.75)
    return f"did you mean {lowered[close[0]]}? " if close else ""


def require(holds: bool, message: str) -> None:
    """Raise UserError(message) unless `holds`."""
    if not holds:
        raise UserError(message)


def require_choice(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    require(
        value in choices,
        f"{key}={value} does not exist; {did_you_mean(value, choices)}choose one of: {', '.join(choices)}.",
    )
