"""Things that all workers of pytest-xdist share: made once per session, by the worker that comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.support.zoo import locked


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the directory `name` that `make` has filled; the other workers wait until it is complete.

    If `make` fails, the next worker tries again in the same directory.
    """
    base = factory.getbasetemp()
    if base.name.startswith("popen-"):  # a worker of pytest-xdist; its parent is the session's
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with locked(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            make(folder)
            done.touch()
    return folder


def needed(items: Iterable[pytest.Item]) -> list[str]:
    """Return the names that the mark `needs` of these tests gives, each once."""
    marks = (mark for item in items for mark in item.iter_markers("needs"))
    return list(dict.fromkeys(name for mark in marks for name in mark.args))
