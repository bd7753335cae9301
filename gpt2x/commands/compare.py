"""`gpt2x compare RUN… | SWEEP | EXPERIMENT`: runs side by side, on the terminal and as a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpt2x.commands.arguments import Parser, location, path
from gpt2x.config import environment
from gpt2x.config.locations import expanded
from gpt2x.errors import UserError
from gpt2x.reports import Comparison, compare, find_runs
from gpt2x.reports.data import to_csv, to_json
from gpt2x.reports.markdown import write_markdown
from gpt2x.reports.terminal import show
from gpt2x.runtime.console import console

WHAT = (
    "run directories, the directory of a multirun, a folder with runs below it such as outputs/pretrain, "
    "or the name of an MLflow experiment; the first run is the baseline"
)


def main(arguments: list[str]) -> None:
    """Print tables, and write the reports.

    Raises:
        UserError: an argument names no run, no run has metrics, or a report cannot be written.
    """
    parser = Parser(prog="gpt2x compare", description=__doc__)
    parser.add_argument("runs", nargs="+", type=location, metavar="RUN", help=WHAT)
    parser.add_argument(
        "--out", action="append", type=path, default=[], metavar="FILE", help=f"write a report: {', '.join(WRITERS)}"
    )
    parser.add_argument("--metric", help="the metric that best values are compared by; default: trainer.best_metric")
    default = expanded(environment.variable("GPT2X_OUTPUTS", "outputs"), "GPT2X_OUTPUTS")
    parser.add_argument(
        "--outputs", type=path, default=Path(default), metavar="DIR", help=f"where experiments are; default: {default}"
    )
    options = parser.parse_args(arguments)
    for target in options.out:
        if target.suffix not in WRITERS:
            raise UserError(f"--out {target}: the suffix chooses the format; give a file with {', '.join(WRITERS)}.")
        if target.is_dir():
            raise UserError(f"--out {target} is a directory; give a file such as {target / 'report.html'}.")
    comparison = compare(find_runs(options.runs, options.outputs), options.metric)
    show(comparison)
    for target in options.out:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            WRITERS[target.suffix](comparison, target)
        except OSError as error:
            raise UserError(f"--out {target} cannot be written ({error.strerror}); give a different file.") from error
        console.notice(f"report: {target}")


def write_html(comparison: Comparison, target: Path) -> None:
    """Write one file that loads nothing."""
    from gpt2x.reports.html import to_html

    target.write_text(to_html(comparison), encoding="utf-8")


def write_csv(comparison: Comparison, target: Path) -> None:
    """Write a row per run."""
    target.write_text(to_csv(comparison), encoding="utf-8", errors="replace")


def write_json(comparison: Comparison, target: Path) -> None:
    """Write runs and groups."""
    target.write_text(to_json(comparison), encoding="utf-8", errors="replace")


WRITERS: dict[str, Callable[[Comparison, Path], None]] = {
    ".html": write_html,
    ".md": write_markdown,
    ".csv": write_csv,
    ".json": write_json,
}
