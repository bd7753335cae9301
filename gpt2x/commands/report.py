"""`gpt2x report RUN_DIR…`: draw `loss.png` and write `report.html` of a training run again."""

from __future__ import annotations

from pathlib import Path

from gpt2x.commands.arguments import Parser, for_each, path
from gpt2x.commands.configuration import read_config
from gpt2x.errors import UserError
from gpt2x.reports import report_run
from gpt2x.runtime.console import console
from gpt2x.tasks.registry import task_of
from gpt2x.tracking.plots import plot_loss


def main(arguments: list[str]) -> None:
    """Do it for each run; a run that cannot be drawn does not keep the others from it.

    Raises:
        RunError: a run could not be drawn; the error has been shown.
    """
    parser = Parser(prog="gpt2x report", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", type=path, metavar="RUN_DIR", help="directory of a training run")
    for_each(
        parser.parse_args(arguments).run_dirs,
        lambda run_dir: console.notice(f"{run_dir}: {', '.join(file.name for file in redraw(run_dir))}"),
    )


def redraw(run_dir: Path) -> list[Path]:
    """Draw the losses of a run and write its report, from its configuration and metrics -> the files.

    The picture lacks the losses of the data that the run compared itself with, which are not kept.

    Raises:
        UserError: there is no such run, its files are damaged, or the directory cannot be written.
    """
    metrics, picture = run_dir / "metrics.jsonl", run_dir / "loss.png"
    for file in (run_dir / "config.yaml", metrics):
        if not file.is_file():
            raise UserError(f"{file} does not exist; give the directory of a training run.")
    config = read_config("train", run_dir / "config.yaml")
    try:
        plot_loss(metrics, picture, f"{config.model.name} on {config.dataset.name}", unit=task_of(config).unit)
    except (OSError, ValueError) as error:
        raise UserError(f"{picture} cannot be drawn ({error}). Free space, or change permissions.") from error
    report = report_run(run_dir)
    if report is None:
        raise UserError(f"{run_dir} has no report; the warning above says why.")
    return [picture, report]
