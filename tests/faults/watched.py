"""Run a call in a child process, and observe what an input can do to it: end, memory, time, and code that it runs.

The child is a fork, so nothing has to be imported again, and a crash ends only the child.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MESSAGE, ACCEPTED, TRACEBACK, CRASH, HANG = "message", "accepted", "traceback", "crash", "hang"
MEMORY_LIMIT = 2 << 30  # beyond the start, at which the system denies memory
# events of Python's audit hooks that no reader of a file needs: programs, sockets, code from texts
EXECUTING = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "pty.spawn")


@dataclass(frozen=True)
class Outcome:
    """What a call did.

    Attributes:
        end: message (UserError), accepted, traceback (any other error), crash (a signal) or hang.
        text: the message, or the last line of the traceback.
        peak_mb: the largest resident memory, above that at the start.
        seconds: of the processor; of a hang, the limit.
        executed: the audit event of code that was run; "" if there was none.
    """

    end: str
    text: str
    peak_mb: float
    seconds: float
    executed: str


def watch(call: Callable[[], Any], seconds: float) -> Outcome:
    """Run `call` in a fork for at most `seconds` of the processor, and six times as long on the wall."""
    readable, writable = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(readable)
        _run(call, writable, seconds)  # does not return
    os.close(writable)
    content = b""
    until = started + 6 * seconds
    while (left := until - time.monotonic()) > 0 and select.select([readable], [], [], left)[0]:
        chunk = os.read(readable, 1 << 16)
        if not chunk:
            break
        content += chunk
    is_late = time.monotonic() >= until
    if is_late:
        os.kill(child, signal.SIGKILL)
    os.close(readable)
    _, status, usage = os.wait4(child, 0)
    if content.endswith(b"}") and not is_late:
        return Outcome(**json.loads(content))
    took, peak = usage.ru_utime + usage.ru_stime, max(0, usage.ru_maxrss - _status("VmRSS")) / 1024
    code = os.waitstatus_to_exitcode(status)
    if is_late or code == -signal.SIGXCPU:
        return Outcome(HANG, f"no end after {took:.0f} s", peak, took, "")
    name = signal.Signals(-code).name if code < 0 else f"status {code}"
    return Outcome(CRASH, f"the process ended with {name}", peak, took, "")


def _run(call: Callable[[], Any], pipe: int, seconds: float) -> None:
    """Run the call and write the outcome to a pipe; the process ends here."""
    from gpt2x.errors import UserError

    executed: list[str] = []
    code = 1
    try:
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silence, stream)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") * 1024 + MEMORY_LIMIT, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))
        sys.addaudithook(lambda event, _: executed.append(event) if event.startswith(EXECUTING) else None)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _status("VmRSS")
        try:
            call()
            end, text = ACCEPTED, ""
        except UserError as error:
            end, text = MESSAGE, str(error)
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            end, text = TRACEBACK, f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        values = {
            "end": end,
            "text": text[:2000].encode("utf-8", "replace").decode(),
            "peak_mb": max(0, _status("VmHWM") - before) / 1024,
            "seconds": time.process_time(),
            "executed": ",".join(sorted(set(executed))),
        }
        os.write(pipe, json.dumps(values).encode()[: 1 << 16])
        code = 0
    finally:
        os._exit(code)


def _status(field: str) -> int:
    """Return a field of this process' memory in kB."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
