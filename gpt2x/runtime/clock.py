"""Since when a run has been asked for: since its command was typed, or since its job of a multirun began."""

from __future__ import annotations

import os
import time

from gpt2x.runtime.memory import process_age_s

STARTED = "GPT2X_STARTED"  # unix seconds; in a process that runs jobs, and in those that a launcher starts


def begin_job() -> None:
    """Count from now on: a job of a multirun begins in this process."""
    os.environ[STARTED] = repr(time.time())


def start() -> str:
    """Return when the run was asked for (unix seconds): what STARTED says, else the start of this process."""
    return os.environ.get(STARTED) or repr(time.time() - process_age_s(os.getpid()))


def age_s() -> float:
    """Return the seconds since the run was asked for."""
    return time.time() - float(start())
