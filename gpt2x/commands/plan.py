"""`gpt2x plan …`: what `train.py … plan=true` prints; `--search` or `search=true` is `plan=search`."""

from __future__ import annotations

from gpt2x.commands.cli import HELP, compose_and_start
from gpt2x.runtime.console import console

SEARCH = ("--search", "search=true")


def main(arguments: list[str]) -> None:
    """Print the plan of a training run, or search for layouts, without running anything."""
    if HELP & set(arguments):
        console.notice(f"{__doc__}\nIt takes what `gpt2x train` takes; see gpt2x train --help.")
        return
    rest = [argument for argument in arguments if argument not in SEARCH]
    if not any(argument.startswith("plan=") for argument in rest):
        rest.append("plan=search" if len(rest) < len(arguments) else "plan=true")
    compose_and_start("train", rest)
