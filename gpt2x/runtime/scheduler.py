"""`python -m gpt2x.runtime.scheduler FD`: the process through which MindSpore's workers find each other."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil

from gpt2x.errors import UserError
from gpt2x.runtime.launch import end_with_launcher

SIBLINGS_POLL_S = 1.0
FAREWELL_S = 5.0


def serve(reserved: int | None = None) -> None:
    """Serve until the last worker has left; it computes, writes and tracks nothing.

    Args:
        reserved: the descriptor of a socket that has held the port until now.

    Raises:
        UserError: the port cannot be used.
    """
    if os.environ.get("MS_WORKER_NUM") == "1":  # which needs nobody to find
        return
    os.environ.setdefault("GLOG_v", "3")
    import mindspore as ms
    from mindspore import communication

    ms.set_device("CPU")
    if reserved is not None:
        os.close(reserved)
    started = time.monotonic()
    try:
        communication.init()  # returns when all is over
    except RuntimeError as error:
        if time.monotonic() - started > 1.0:
            raise
        place = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
        raise UserError(
            f"MindSpore's scheduler cannot listen on {place}, which somebody else took: start again, or give "
            f"launch.port=PORT ({str(error).splitlines()[0]})"
        ) from None


def end_with_siblings() -> None:
    """Have this process end soon after the last worker that msrun started.

    Where a worker failed, MindSpore's scheduler would wait for half a minute, and msrun for the scheduler. A thread
    could not watch, since `init` does not release Python's lock: a forked process does.
    """
    msrun, own = psutil.Process(os.getppid()), os.getpid()
    if os.fork():
        return
    begun = False
    while os.getppid() == own:
        others = [child for child in msrun.children() if child.pid != own] if msrun.is_running() else []
        alive = [child for child in others if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        if begun and not alive:
            time.sleep(FAREWELL_S)
            if os.getppid() == own:
                os.kill(own, signal.SIGKILL)
        begun = begun or bool(alive)
        time.sleep(SIBLINGS_POLL_S)
    os._exit(0)


if __name__ == "__main__":
    end_with_launcher()
    from gpt2x.runtime.exits import guarded

    sys.exit(guarded(lambda: serve(int(sys.argv[1]))))
