"""Ctrl-C and SIGTERM as `KeyboardInterrupt`, although MindSpore installs handlers of its own."""

from __future__ import annotations

import _thread
import functools
import signal
import threading
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a cluster's job scheduler sends it; ends a run as Ctrl-C does."""


@functools.cache
def deliver_interrupts(*signals: signal.Signals) -> None:
    """Turn signals into KeyboardInterrupt in the main thread; call it before MindSpore is imported, once per process.

    At every run of a graph, MindSpore's graph executor installs a handler that kills the process at once. Therefore
    the signals are blocked in every thread, and one thread waits for them and interrupts the main thread. A child
    process inherits the blocked signals and has to call this function as well, or unblock them.

    Args:
        signals: SIGINT, SIGTERM (`Terminated`) or both.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM}.difference(signals))
    if signal.SIGTERM in signals:
        signal.signal(signal.SIGTERM, terminate)

    def wait() -> None:
        while True:
            _thread.interrupt_main(signal.Signals(signal.sigwait(signals)))

    threading.Thread(target=wait, name="interrupts", daemon=True).start()


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM.

    Raises:
        Terminated: always.
    """
    raise Terminated
