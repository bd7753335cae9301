"""`gpt2x sync DIR…`: send to MLflow what it lacks of earlier runs, and write again the files of csv and tensorboard."""

from __future__ import annotations

from pathlib import Path

from gpt2x.commands.arguments import Parser, for_each, path
from gpt2x.runtime.console import console
from gpt2x.tracking.mlflow_sync import sync, tracked_dirs
from gpt2x.tracking.repair import repair_files


def main(arguments: list[str]) -> None:
    """Send the rest of each run; a run that cannot be sent does not keep the others from it.

    Raises:
        RunError: a run could not be sent; the error has been shown.
    """
    parser = Parser(prog="gpt2x sync", description=__doc__)
    help_text = "directory of a tracked run, or one with tracked runs below it"
    parser.add_argument("run_dirs", nargs="+", type=path, metavar="DIR", help=help_text)
    for_each(parser.parse_args(arguments).run_dirs, sync_below)


def sync_below(directory: Path) -> None:
    """Send and write what is missing of the runs in or below a directory, and say what was.

    Raises:
        UserError: the directory has no tracked run, MLflow does not answer, or a file cannot be written.
    """
    written = repair_files(directory)
    for text in written:
        console.notice(f"{text} written from metrics.jsonl")
    if tracked_dirs(directory) or not written:
        console.notice(f"{directory}: {sync(directory)} values sent")
