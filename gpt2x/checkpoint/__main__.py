"""`python -m gpt2x.checkpoint inspect|verify|merge|reshard`: looks at checkpoints, or writes them in other slices."""

from __future__ import annotations

import argparse
import sys
from math import prod
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gpt2x.checkpoint.reshard import merge, reshard
from gpt2x.checkpoint.store import Checkpoint, open_checkpoint
from gpt2x.config import ParallelConfig
from gpt2x.errors import UserError, did_you_mean


def inspect(checkpoint: Checkpoint, console: Console) -> None:
    """Prints model, loop state, groups of tensors, and files with the slices in them."""
    table = Table(title=str(checkpoint.path), show_header=False)
    for key, value in vars(checkpoint.model).items():
        table.add_row(f"model.{key}", str(value))
    for key, value in checkpoint.loop_state.items():
        table.add_row(f"loop_state.{key}", str(value))
    slices: dict[str, int] = {}
    for group, entries in checkpoint.manifest["groups"].items():
        values = sum(prod(entry["shape"]) for entry in entries.values())
        files = [piece["file"] for entry in entries.values() for piece in entry["slices"]]
        for file in files:
            slices[file] = slices.get(file, 0) + 1
        number = f"{len(files)} slices in {len(set(files))} files"
        table.add_row(group, f"{len(entries)} tensors, {values:,} values, {number}")
    for name, entry in checkpoint.manifest["files"].items():
        number = f", {slices[name]} slices" if name in slices else ""
        table.add_row(name, f"{entry['size']:,} bytes{number}")
    console.print(table)


def layout(name: str) -> ParallelConfig:
    """The option of conf/parallel.

    Raises:
        UserError: There is none of that name.
    """
    from omegaconf import OmegaConf

    from gpt2x.config.options import CONF

    options = {path.stem: path for path in sorted((CONF / "parallel").glob("*.yaml"))}
    if name not in options:
        raise UserError(
            f"--parallel {name} is not an option; {did_you_mean(name, [*options])}options: {', '.join(options)}"
        )
    parallel = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ParallelConfig), OmegaConf.load(options[name])))
    assert isinstance(parallel, ParallelConfig)
    return parallel


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gpt2x.checkpoint", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, purpose in (
        ("inspect", "print what a checkpoint holds, and in which slices"),
        ("verify", "hash all files, check that slices cover their tensors"),
        ("merge", "write it as a run on one device does"),
        ("reshard", "write it as a run in another layout does"),
    ):
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.add_argument("source", metavar="SRC", type=_path, help="e.g. RUN/checkpoints/step_100")
        if name in ("merge", "reshard"):
            action.add_argument("target", metavar="DST", type=_path, help="a directory that does not exist")
        if name == "reshard":
            action.add_argument("--parallel", required=True, help="an option of conf/parallel, e.g. tp8")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a fault, which it prints."""
    chosen = parse(arguments)
    try:
        if chosen.action == "reshard":
            parallel = layout(chosen.parallel)
        checkpoint = open_checkpoint(chosen.source)
        if chosen.action == "inspect":
            inspect(checkpoint, Console())
        elif chosen.action == "verify":
            checkpoint.verify()
            print(f"{checkpoint.path}: {len(checkpoint.manifest['files'])} files intact")
        else:
            if chosen.action == "merge":
                merge(checkpoint, chosen.target)
            else:
                reshard(checkpoint, chosen.target, parallel)
            print(f"{chosen.target}: {len(open_checkpoint(chosen.target).manifest['files'])} files written")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _path(text: str) -> Path:
    return Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(main())
