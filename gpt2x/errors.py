"""How a run ends that does not succeed (floor 0)."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can put right: the message names the key, the value and the fix.

    Entry points print the message alone, without a traceback, and exit with status 2.
    """


class RunError(Exception):
    """A run failed, and why has been shown.

    Attributes:
        status: the exit status of the entry point: 2 after a user's mistake, else 1.
    """

    def __init__(self, message: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return 'did you mean X? ' for the choice that is spelled most like `word`, or '' if none is similar."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.75)
    return f"did you mean {close[0]}? " if close else ""


def require(holds: bool, message: str) -> None:
    """Raise UserError(message) unless `holds`."""
    if not holds:
        raise UserError(message)


def require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError unless `value` is one of `choices`."""
    require(value in choices, f"{key}={value} is not known; choose one of: {', '.join(choices)}")


def require_at_least(key: str, value: float | None, least: float) -> None:
    """Raise UserError when `value` is given and below `least`."""
    require(value is None or value >= least, f"{key}={value} must be at least {least}")


def require_above_zero(key: str, value: float | None) -> None:
    """Raise UserError when `value` is given and not above 0."""
    require(value is None or value > 0, f"{key}={value} must be above 0")


def require_share(key: str, value: float | None) -> None:
    """Raise UserError when `value` is given and not in [0, 1)."""
    require(value is None or 0 <= value < 1, f"{key}={value} must be at least 0 and below 1")
