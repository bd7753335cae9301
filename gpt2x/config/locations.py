"""Paths that users give, on any command line and in files of options: what `~` stands for, and no empty ones."""

from __future__ import annotations

import os
from typing import Any

from gpt2x.errors import UserError


def expanded(path: str, name: str = "") -> str:
    """Return a path with the home directory that `~` or `~user` at its beginning stands for, as shells read it.

    Args:
        path: as typed.
        name: the key or argument that gives it, for messages.

    Raises:
        UserError: `~user` names nobody, and no such file exists.
    """
    if not path.startswith("~"):
        return path
    result = os.path.expanduser(path)
    if not result.startswith("~"):
        return result
    if os.path.lexists(path):  # a file whose name begins with ~
        return os.path.join(os.curdir, path)
    user = path[1:].partition(os.sep)[0]
    raise UserError(
        f"{name and f'{name}='}{path}: there is no user {user!r} with a home directory; for a file whose name begins "
        f"with ~, give ./{path}."
    )


def with_home(value: Any, name: str) -> Any:
    """Return the value of a key for paths, or a list of them, as `expanded` returns each.

    Raises:
        UserError: a path is empty, or its `~user` names nobody.
    """
    if isinstance(value, list):
        return [with_home(one, name) for one in value]
    if not isinstance(value, str):
        return value
    if not value.strip():
        raise UserError(f"{name}={value} is an empty path; give a path, or leave {name} out.")
    return expanded(value, name)
