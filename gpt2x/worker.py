"""`python -m gpt2x.worker NAME CONFIG`: run a resolved configuration; Hydra is not involved."""

from __future__ import annotations

import sys
from pathlib import Path

from gpt2x import build
from gpt2x.cli import guarded, load_config


def main(name: str, path: str) -> None:
    """Execute entry point `name` with the configuration at `path`."""
    build.RUNS[name](load_config(name, Path(path)))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1], sys.argv[2])))
