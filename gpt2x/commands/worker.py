"""`python -m gpt2x.commands.worker NAME CONFIG`: one process of a launched run; Hydra is not involved."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from gpt2x.commands.configuration import read_config
from gpt2x.commands.entry import start
from gpt2x.errors import RunError
from gpt2x.runtime.exits import run_and_leave
from gpt2x.runtime.interrupt import Interrupted, catch
from gpt2x.runtime.launch import RUN_DIR, end_with_launcher, keep_to_cores
from gpt2x.runtime.log_records import handle_log_records
from gpt2x.runtime.role import read_role


def work(name: str, config_path: Path) -> None:
    """Run command `name` with the configuration at `config_path`, in the run directory that the launcher gave.

    Raises:
        RunError: the process was interrupted, which the launcher tells the user.
    """
    try:
        start(name, read_config(name, config_path), read_role(os.environ), Path(os.environ[RUN_DIR]))
    except Interrupted as interrupted:
        raise RunError(status=interrupted.status) from None


if __name__ == "__main__":
    catch(is_launched=True)
    end_with_launcher()
    keep_to_cores()
    handle_log_records(are_shown=False)
    run_and_leave(lambda: work(sys.argv[1], Path(sys.argv[2])))
