"""How a process ends: its exit status, and errors as users should see them."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from gpt2x.errors import RunError, UserError
from gpt2x.runtime.console import show_error, stderr
from gpt2x.runtime.heartbeat import register_stacks
from gpt2x.runtime.interrupt import Terminated
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

    The status is 0, 2 after a user's mistake, 1 after another failure, 130 after Ctrl-C, 143 after SIGTERM.
    """
    print_all_characters()
    try:
        job()
    except UserError as error:
        show_error(str(error))
        return 2
    except RunError as failure:
        if str(failure):  # otherwise it has been shown
            show_error(str(failure))
        return failure.status
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        stderr.notice("terminated" if is_terminated else "interrupted")
        return 128 + (signal.SIGTERM if is_terminated else signal.SIGINT)
    except OSError as error:
        if error.errno not in DISK or error.filename is None:
            run_log.write(traceback.format_exc())
            raise
        show_error(f"{error.filename}: {error.strerror}. {DISK[error.errno]}")
        return 2
    except Exception:
        run_log.write(traceback.format_exc())
        raise
    return 0


def print_all_characters() -> None:
    """Let both streams print a character that their encoding lacks as Python spells it, such as \\u4e2d, and not fail.

    This is how Python opens standard error. PYTHONIOENCODING and locales other than UTF-8 make the streams strict.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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
    """End a process of several without the destructors of MindSpore's libraries.

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
