"""Ctrl-C and SIGTERM end a run as Python ends a program, with MindSpore in the process."""

from __future__ import annotations

import _thread
import functools
import signal
import threading
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a scheduler of jobs sends it: ends a run as Ctrl-C does."""


@functools.cache
def deliver_interrupts(*signals: signal.Signals) -> None:
    """Turn signals into KeyboardInterrupt in the main thread; call it before MindSpore is imported. Once a process.

    MindSpore's graph executor installs a handler of its own at every run of a graph, which kills the process at
    once. So the signals are blocked in every thread, and one thread waits for them and interrupts the main one. A
    process that is started from here inherits the blocked signals: it has to call this as well, or unblock them.

    Args:
        signals: SIGINT, SIGTERM (`Terminated`) or both.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM}.difference(signals))
    if signal.SIGTERM in signals:
        signal.signal(signal.SIGTERM, _terminate)

    def wait() -> None:
        while True:
            _thread.interrupt_main(signal.Signals(signal.sigwait(signals)))

    threading.Thread(target=wait, name="interrupts", daemon=True).start()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
