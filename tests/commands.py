"""Sub-commands of `gpt2x` within the tests' process: take the arguments after the name, return the exit status."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gpt2x.commands import cli
from gpt2x.runtime.exits import guarded


def command(name: str) -> Callable[[Sequence[str]], int]:
    """Return what runs `gpt2x NAME`."""
    return lambda arguments: guarded(lambda: cli.gpt2x([name, *arguments]))


checkpoint, convert, harness, sync = map(command, ("checkpoint", "convert", "harness", "sync"))
