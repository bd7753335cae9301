"""`gpt2x convert --to FORMAT --output DIR SOURCE`: a model or an adapter in a different format."""

from __future__ import annotations

from gpt2x.commands.arguments import Parser, location, path
from gpt2x.convert.directories import require_empty
from gpt2x.formats.base import FORMATS, Change, Export
from gpt2x.runtime.console import console


def parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="gpt2x convert", description=__doc__)
    parser.add_argument(
        "source",
        type=path,
        help="a run, a gpt2x checkpoint, a Hugging Face GPT-2 directory or a .ckpt file of MindFormers; an adapter for "
        "peft",
    )
    parser.add_argument("--to", choices=FORMATS.names(), required=True, help="the format")
    parser.add_argument("--output", type=path, required=True, help="a directory that does not exist or is empty")
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--merge", type=location, metavar="ADAPTER", help="add an adapter (of a run, or of PEFT) to the weights"
    )
    change.add_argument(
        "--unmerge", type=location, metavar="ADAPTER", help="subtract a merged adapter; exact up to rounding"
    )
    return parser


def main(arguments: list[str]) -> None:
    """Write the directory.

    Raises:
        UserError: a directory cannot be read or written, or an adapter does not fit.
    """
    options = parser().parse_args(arguments)
    require_empty(options.output)
    change = None
    if options.merge or options.unmerge:
        change = Change(options.merge or options.unmerge, 1 if options.merge else -1)
    export: Export = FORMATS.load(options.to)
    console.notice(f"{options.output}: {export(options.source, options.output, change)} written")
