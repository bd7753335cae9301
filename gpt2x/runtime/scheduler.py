"""`python -m gpt2x.runtime.scheduler FD`: the process that connects MindSpore's workers to each other."""

from __future__ import annotations

import os
import signal
import sys
import time

from gpt2x.errors import UserError
from gpt2x.runtime.launch import end_with_launcher

SIBLINGS_POLL_S = 1.0
FAREWELL_S = 5.0


def serve(reserved: int | None = None) -> None:
    """Serve until the last worker has left; the scheduler computes, writes and tracks nothing.

    Args:
        reserved: descriptor of the socket that reserves the port, or None.

    Raises:
        UserError: the port cannot be used.
    """
    if os.environ.get("MS_WORKER_NUM") == "1":  # a single worker needs no scheduler
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
        address = f"{os.environ.get('MS_SCHED_HOST')}:{os.environ.get('MS_SCHED_PORT')}"
        raise UserError(
            f"MindSpore's scheduler cannot listen on {address}, which another program has taken "
            f"({str(error).splitlines()[0]}); start again, or give launch.port=PORT."
        ) from None


def end_with_siblings() -> None:
    """End this process soon after the last worker that msrun started.

    After a worker's failure, MindSpore's scheduler would wait for half a minute, and msrun for the scheduler. A forked
    process watches, because `init` never releases Python's lock to a thread.
    """
    import psutil

    msrun, pid = psutil.Process(os.getppid()), os.getpid()
    if os.fork():
        return
    begun = False
    while os.getppid() == pid:
        others = [child for child in msrun.children() if child.pid != pid] if msrun.is_running() else []
        alive = [child for child in others if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
        if begun and not alive:
            time.sleep(FAREWELL_S)
            if os.getppid() == pid:
                os.kill(pid, signal.SIGKILL)
        begun = begun or bool(alive)
        time.sleep(SIBLINGS_POLL_S)
    os._exit(0)


if __name__ == "__main__":
    end_with_launcher()
    from gpt2x.runtime.exits import guarded

    sys.exit(guarded(lambda: serve(int(sys.argv[1]))))
