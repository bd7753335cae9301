"""`python -m gpt2x.commands.worker NAME CONFIG`: run a resolved configuration; Hydra is not involved."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from gpt2x.commands import entry as build
from gpt2x.commands.configuration import read_config
from gpt2x.errors import RunError
from gpt2x.runtime.exits import run_and_leave
from gpt2x.runtime.launch import end_with_launcher, keep_to_cores


def main(name: str, path: str) -> None:
    """Execute entry point `name` with the configuration at `path`.

    Raises:
        RunError: it was interrupted, which the launcher tells.
    """
    try:
        build.RUNS[name](read_config(name, Path(path)))
    except KeyboardInterrupt:
        raise RunError(status=128 + signal.SIGINT) from None


if __name__ == "__main__":
    end_with_launcher()
    keep_to_cores()
    run_and_leave(lambda: main(sys.argv[1], sys.argv[2]))
