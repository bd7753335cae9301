"""`python -m gpt2x.checkpoint inspect|verify DIR`: what a checkpoint holds, and whether it is intact."""

from __future__ import annotations

import argparse
import sys
from math import prod

from rich.console import Console
from rich.table import Table

from gpt2x.checkpoint.store import Checkpoint, open_checkpoint
from gpt2x.errors import UserError


def inspect(checkpoint: Checkpoint, console: Console) -> None:
    """Prints model, loop state, groups of tensors and files."""
    table = Table(title=str(checkpoint.path), show_header=False)
    for key, value in vars(checkpoint.model).items():
        table.add_row(f"model.{key}", str(value))
    for key, value in checkpoint.loop_state.items():
        table.add_row(f"loop_state.{key}", str(value))
    for group in checkpoint.groups():
        names = checkpoint.names(group)
        values = sum(prod(checkpoint.shape(group, name)) for name in names)
        table.add_row(group, f"{len(names)} tensors, {values:,} values")
    for name, entry in checkpoint.manifest["files"].items():
        table.add_row(name, f"{entry['size']:,} bytes")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a fault, which it prints."""
    parser = argparse.ArgumentParser(prog="python -m gpt2x.checkpoint", description=__doc__)
    parser.add_argument("action", choices=["inspect", "verify"])
    parser.add_argument("directory", help="e.g. RUN/checkpoints/step_100")
    chosen = parser.parse_args(arguments)
    try:
        checkpoint = open_checkpoint(chosen.directory)
        if chosen.action == "inspect":
            inspect(checkpoint, Console())
        else:
            checkpoint.verify()
            print(f"{checkpoint.path}: {len(checkpoint.manifest['files'])} files intact")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
