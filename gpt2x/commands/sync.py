"""`gpt2x sync DIR…`: send to MLflow what it lacks of earlier runs, and write again the files of csv and tensorboard."""

from __future__ import annotations

from gpt2x.commands.arguments import Parser, path
from gpt2x.errors import RunError, UserError
from gpt2x.runtime.console import console, show_error
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
    has_failed = False
    for run_dir in parser.parse_args(arguments).run_dirs:
        try:
            written = repair_files(run_dir)
            for text in written:
                console.notice(f"{text} written from metrics.jsonl")
            if tracked_dirs(run_dir) or not written:
                console.notice(f"{run_dir}: {sync(run_dir)} values sent")
        except UserError as error:
            show_error(str(error))
            has_failed = True
    if has_failed:
        raise RunError(status=2)
