"""How a process ends: its exit status, and errors as users should see them."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from gpt2x.errors import RunError, UserError
from gpt2x.runtime import interrupt, streams
from gpt2x.runtime.console import show_error, stderr
from gpt2x.runtime.heartbeat import register_stacks
from gpt2x.runtime.processes import say_done
from gpt2x.runtime.run_log import run_log

# errors of the file system that are no faults of the program, and what to do
DISK = {
    errno.ENOSPC: "Free space, or give a different directory.",
    errno.EDQUOT: "Free space, or give a different directory.",
    errno.EROFS: "Give a directory that can be written.",
    errno.EACCES: "Change its permissions, or give a different directory.",
    errno.EPERM: "Change its permissions, or give a different directory.",
    errno.EIO: "Look at the disk and its file system (dmesg).",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    errno.ENFILE: "Raise the limit of open files (sysctl fs.file-max).",
}


def guarded(job: Callable[[], Any]) -> int:
    """Run `job`, print its failure as one message, and return the exit status.

    The status is 0, 2 after a user's mistake, 1 after another failure, 128 + N after signal N.
    """
    streams.set_up()
    try:
        job()
        streams.require_written()
    except KeyboardInterrupt as signalled:
        return say_interrupted(signalled)
    except UserError as error:
        show_error(str(error))
        return 2
    except RunError as failure:
        if str(failure):  # otherwise it has been shown
            show_error(str(failure))
        return failure.status
    except OSError as error:
        if error.errno not in DISK or error.filename is None:
            run_log.write(traceback.format_exc())
            raise
        show_error(f"{error.filename}: {error.strerror}. {DISK[error.errno]}")
        return 2
    except Exception:
        run_log.write(traceback.format_exc())
        if interrupt.is_ending():  # MindSpore turns what interrupts its compiler into an error of its own
            return say_interrupted(interrupt.Interrupted(interrupt.requested()))
        raise
    return 0


def say_interrupted(signalled: KeyboardInterrupt) -> int:
    """Say which signal ended this process, and return its exit status."""
    if not isinstance(signalled, interrupt.Interrupted):
        signalled = interrupt.Interrupted(signal.SIGINT)
    stderr.notice(str(signalled))
    return signalled.status


def run_and_leave(job: Callable[[], Any]) -> NoReturn:
    """Run `job` as `guarded` does, in one process of several, and end this process."""
    register_stacks()
    try:
        status = guarded(job)
    except Exception:
        traceback.print_exc()
        status = 1
    leave(status)


def leave(status: int) -> NoReturn:
    """End a process of several, or one that a signal has interrupted, without the destructors of MindSpore's libraries.

    After a failure, leave out MindSpore's farewell to the other processes, too: it would wait for them.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    if status == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the farewell prints lines to it
        say_done()
        atexit._run_exitfuncs()
    os._exit(status)
