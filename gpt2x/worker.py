"""`python -m gpt2x.worker NAME CONFIG`: run a resolved configuration; Hydra is not involved."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from gpt2x import build
from gpt2x.cli import guarded, load_config
from gpt2x.errors import RunError
from gpt2x.runtime.launch import end_with_launcher
from gpt2x.runtime.world import say_done


def main(name: str, path: str) -> int:
    """Execute entry point `name` with the configuration at `path`; the exit status."""

    def job() -> None:
        try:
            build.RUNS[name](load_config(name, Path(path)))
        except KeyboardInterrupt:  # which the launcher tells
            raise RunError(status=128 + signal.SIGINT) from None

    try:
        return guarded(job)
    except Exception:
        traceback.print_exc()
        return 1


def leave(status: int) -> NoReturn:
    """End the process without the destructors of MindSpore's libraries, one run in several of which crashes.

    After a failure also without its farewell to the other processes, which would wait for them.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the farewell prints lines of its own
        say_done()
        atexit._run_exitfuncs()
    os._exit(status)


if __name__ == "__main__":
    end_with_launcher()
    leave(main(sys.argv[1], sys.argv[2]))
