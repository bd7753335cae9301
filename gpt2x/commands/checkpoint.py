"""`gpt2x checkpoint ACTION CHECKPOINT`: look at a checkpoint, or write it in different slices."""

from __future__ import annotations

from math import prod

from rich.table import Table
from rich.text import Text

from gpt2x.checkpoint.reshard import merge, reshard
from gpt2x.checkpoint.store import Checkpoint, open_checkpoint
from gpt2x.commands.arguments import Parser, path
from gpt2x.config import ParallelConfig
from gpt2x.config.options import read_option
from gpt2x.convert.fit import not_finite
from gpt2x.runtime.console import console

ACTIONS = {
    "inspect": "print the contents of a checkpoint and their slices",
    "verify": "hash all files and check that slices cover their tensors",
    "merge": "write it as a run on one device does",
    "reshard": "write it as a run in a different layout does",
}


def inspect(checkpoint: Checkpoint) -> None:
    """Print the model, loop state, groups of tensors, and files with the slices in them."""
    table = Table(title=str(checkpoint.path), show_header=False)
    for key, value in vars(checkpoint.model).items():
        table.add_row(Text(f"model.{key}"), Text(str(value)))
    for key, value in checkpoint.loop_state.items():
        table.add_row(Text(f"loop_state.{key}"), Text(str(value)))
    slices: dict[str, int] = {}
    for group, entries in checkpoint.manifest["groups"].items():
        values = sum(prod(entry["shape"]) for entry in entries.values())
        files = [piece["file"] for entry in entries.values() for piece in entry["slices"]]
        for file in files:
            slices[file] = slices.get(file, 0) + 1
        number = f"{len(files)} slices in {len(set(files))} files"
        table.add_row(Text(group), f"{len(entries)} tensors, {values:,} values, {number}")
    for name, entry in checkpoint.manifest["files"].items():
        number = f", {slices[name]} slices" if name in slices else ""
        table.add_row(Text(name), f"{entry['size']:,} bytes{number}")
    console.rich.print(table)


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="gpt2x checkpoint", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, purpose in ACTIONS.items():
        action = actions.add_parser(name, help=purpose, description=purpose)
        action.add_argument("source", metavar="SRC", type=path, help="such as RUN/checkpoints/step_100")
        if name in ("merge", "reshard"):
            action.add_argument("target", metavar="DST", type=path, help="a directory that does not exist")
        if name == "reshard":
            action.add_argument("--parallel", required=True, help="an option of conf/parallel, such as tp8")
    return parser


def main(arguments: list[str]) -> None:
    """Look at a checkpoint, or write it anew.

    Raises:
        UserError: a directory cannot be read or written, a checkpoint is damaged, or there is no such layout.
    """
    options = parser().parse_args(arguments)
    if options.action == "reshard":
        parallel = read_option("parallel", options.parallel, ParallelConfig)
    checkpoint = open_checkpoint(options.source)
    if options.action == "inspect":
        inspect(checkpoint)
    elif options.action == "verify":
        checkpoint.verify()
        console.notice(f"{checkpoint.path}: {len(checkpoint.manifest['files'])} files intact")
        for group in checkpoint.groups():
            if wrong := not_finite(checkpoint.tensors(group)):
                console.warn(f"{group}: values of {len(wrong)} tensors are NaN or infinite, the first is {wrong[0]}")
    else:
        if options.action == "merge":
            merge(checkpoint, options.target)
        else:
            reshard(checkpoint, options.target, parallel)
        console.notice(f"{options.target}: {len(open_checkpoint(options.target).manifest['files'])} files written")
