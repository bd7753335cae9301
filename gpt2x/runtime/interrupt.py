"""Ctrl-C ends a run as Python ends a program, with MindSpore in the process."""

from __future__ import annotations

import _thread
import signal
import threading


def deliver_interrupts() -> None:
    """Turn SIGINT into KeyboardInterrupt in the main thread; call it before MindSpore is imported.

    MindSpore's graph executor installs a handler of its own at every run of a graph, which kills the process at
    once. So the signal is blocked in every thread, and one thread waits for it and interrupts the main one. A
    process that is started from here inherits the blocked signal: it has to call this as well, or unblock it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})

    def wait() -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            _thread.interrupt_main()

    threading.Thread(target=wait, name="interrupts", daemon=True).start()
