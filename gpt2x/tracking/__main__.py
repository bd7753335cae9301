"""`python -m gpt2x.tracking sync RUN_DIR...`: sends to MLflow what it lacks of earlier runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gpt2x.errors import UserError
from gpt2x.tracking.mlflow_run import sync


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status (2: the user can put it right)."""
    parser = argparse.ArgumentParser(prog="python -m gpt2x.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sync", help="send the part of metrics.jsonl that MLflow lacks")
    command.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    options = parser.parse_args(arguments)
    status = 0
    for run_dir in options.run_dirs:
        try:
            print(f"{run_dir}: {sync(run_dir)} values sent")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
