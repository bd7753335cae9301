"""Other programs that are connected to the ports of a run (docs/design/launch.md; imports no mindspore)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

MOST_SHOWN = 3  # lines


def strangers() -> str:
    """Return the lines of `describe` for this process and all that it has started; "" if the system does not tell."""
    import psutil

    def name(pid: int) -> str:
        return " ".join(psutil.Process(pid).cmdline())[:80]

    try:
        children = psutil.Process().children(recursive=True)
        return describe(psutil.net_connections("tcp"), {os.getpid(), *(child.pid for child in children)}, name)
    except (psutil.Error, OSError):
        return ""


def describe(sockets: Sequence[Any], run: Collection[int], name: Callable[[int], str]) -> str:
    """Return which programs that are not of the run are connected to its ports, each line after a newline.

    A connection has two ends on this machine, and the end that has opened it tells its process. Connections to other
    machines are left out: those of several nodes belong to the run.

    Args:
        sockets: all of this machine, as `psutil.net_connections` returns them.
        run: the processes of the run.
        name: returns the command of a process.
    """
    ports = {socket.laddr.port for socket in sockets if socket.status == "LISTEN" and socket.pid in run}
    accepted = {(socket.raddr, socket.laddr) for socket in sockets if socket.laddr and socket.laddr.port in ports}
    opened = Counter(
        (socket.raddr.port, socket.pid)
        for socket in sockets
        if (socket.laddr, socket.raddr) in accepted and socket.status == "ESTABLISHED" and socket.pid not in run
    )
    lines = []
    for (port, pid), count in opened.most_common(MOST_SHOWN):
        program = f"process {pid} ({name(pid)})" if pid else "a process of a different user or container"
        times = f" {count} times" if count > 1 else ""
        lines.append(
            f"\n  {program} is connected to port {port} of this run{times} and does not belong to it. MindSpore may "
            "wait for it in vain. End that program, or keep it away from the port, and start again."
        )
    return "".join(lines)
