"""How a process ends: exit statuses, and errors as users should see them."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config import schema
from gpt2x.config.messages import message_of
from gpt2x.errors import RunError, UserError
from gpt2x.runtime import launch
from gpt2x.runtime.interrupt import Terminated


def guarded(job: Callable[[], Any], root: type | None = None) -> int:
    """Run `job`; print a user's mistake as one message. Returns the exit status."""
    status = 2
    try:
        job()
    except UserError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = message_of(error, root or schema.TrainConfig)
    except RunError as failure:
        message, status = str(failure), failure.status
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        print("terminated" if is_terminated else "interrupted", file=sys.stderr)
        return 128 + (signal.SIGTERM if is_terminated else signal.SIGINT)
    else:
        return 0
    if message:
        print(f"error: {message}", file=sys.stderr)
    return status


def run_and_leave(job: Callable[[], Any], root: type | None = None) -> NoReturn:
    """`guarded` in one of several processes, which ends with it."""
    try:
        status = guarded(job, root)
    except Exception:
        traceback.print_exc()
        status = 1
    launch.leave(status)
