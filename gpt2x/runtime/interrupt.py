"""Signals that ask a process to end: a terminal's, a cluster's (docs/design/launch.md, section Ending).

A first signal interrupts the main thread (`Interrupted`), or, in a block that is `deferred`, is only noted: the block
asks for it (`requested`) where it can stop without loss. A second signal ends the process at once, and so does the end
of the grace (`launch.grace_s`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from gpt2x.runtime import heartbeat

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: Slurm's warning before a time limit
STATUSES = {128 + number: number for number in STOPS}  # exit status -> signal
SAME_EVENT_S = 1.0  # one event may arrive several times: GNU's timeout and a closed terminal send a signal twice
GRACE_S = 30.0  # Slurm's KillWait and Kubernetes' terminationGracePeriodSeconds
MARGIN_S = 2.0  # before the end of the grace
WATCH_S = 0.2
# to the main thread; nobody else sends it, as a terminal sends SIGWINCH when its size changes; macOS lacks SIGRTMAX
WAKE = getattr(signal, "SIGRTMAX", signal.SIGUSR2)
STDERR = 2


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that a shell gives to a process that such a signal ends."""
        return 128 + self.number


@dataclass
class _Requests:
    """What signals have asked of this process.

    Attributes:
        number: the first signal; 0: none.
        since: when it came, by `time.monotonic`.
        grace_s: seconds from then to the end of this process.
        notice: what the main thread does meanwhile, for the user; None: it is interrupted.
        has_raised: True once the main thread was interrupted.
        is_caught: True once `catch` was called.
        mutes: standard error is to be muted when the main thread is interrupted.
        muted: a descriptor of standard error, while it is.
    """

    number: int = 0
    since: float = 0.0
    grace_s: float = GRACE_S
    notice: str | None = None
    has_raised: bool = False
    is_caught: bool = False
    mutes: bool = False
    muted: int | None = None


_requests = _Requests()


def catch(*, is_launched: bool = False) -> None:
    """Receive the signals of STOPS from now on; call it first in a process, in the main thread.

    At every run of a graph, MindSpore's graph executor installs a handler that kills the process at once. Therefore
    the signals are blocked in every thread, and one thread waits for them. It sends WAKE to the main thread, because
    only a signal ends what that waits for: a lock, a program, a read. A child process inherits the blocked signals
    and has to call this function as well. A signal that is ignored (nohup) stays so.

    Args:
        is_launched: a launcher decides when this process has to end; it may get a signal from it a second time.
    """
    if _requests.is_caught or threading.current_thread() is not threading.main_thread():
        return
    _requests.is_caught = True
    stops = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    signal.signal(WAKE, _interrupt_main)

    def wait() -> None:
        while stops:
            received = signal.sigwaitinfo(stops)
            if is_launched and received.si_signo == signal.SIGTERM and received.si_pid == os.getpid():
                _end_as_mindspore_asks()
            request(received.si_signo, may_repeat=is_launched)

    threading.Thread(target=wait, name="signals", daemon=True).start()


def request(number: int, *, may_repeat: bool = False) -> None:
    """Do what a signal asks for: interrupt the main thread, unless it is `deferred`; end the process at the second.

    Args:
        number: the signal.
        may_repeat: the second signal means nothing more than the first.
    """
    now = time.monotonic()
    if not _requests.number:
        _requests.number, _requests.since = number, now
        is_deferred = _requests.notice is not None
        threading.Thread(
            target=_watch_grace, args=(not is_deferred and _requests.is_caught,), name="grace", daemon=True
        ).start()
        if is_deferred and not may_repeat:
            from gpt2x.runtime.console import stderr

            stderr.notice(f"{signal.Signals(number).name}: {_requests.notice}; a second signal ends at once")
    elif not may_repeat and now - _requests.since > SAME_EVENT_S:
        leave(number, f"{signal.Signals(number).name}: ended at once")


def requested() -> int:
    """Return the signal that asked this process to end; 0: none has."""
    return _requests.number


def deadline(before_s: float = 0.0) -> float:
    """Return when this process has to have ended, less `before_s` seconds, by `time.monotonic`; inf: at no time."""
    return _requests.since + _requests.grace_s - MARGIN_S - before_s if _requests.number else float("inf")


def set_grace(seconds: float) -> None:
    """Set the time from the first signal to the end of this process, whatever it does then."""
    _requests.grace_s = seconds


def check() -> None:
    """Raise Interrupted if a signal has asked this process to end.

    Raises:
        Interrupted: it has.
    """
    if _requests.number:
        _requests.has_raised = True
        raise Interrupted(_requests.number)


def is_ending() -> bool:
    """Return True if the main thread was interrupted: errors from then on are consequences."""
    return _requests.has_raised


@contextlib.contextmanager
def deferred(notice: str) -> Iterator[None]:
    """Note a signal only, until the block ends; the block asks for it by `requested`.

    Args:
        notice: what is done before the end, for the user.
    """
    before, _requests.notice = _requests.notice, notice
    try:
        yield
    finally:
        _requests.notice = before


@contextlib.contextmanager
def prompt() -> Iterator[None]:
    """Let a signal interrupt the main thread in a part of a `deferred` block that has nothing to lose: the compiler.

    MindSpore prints a page about what interrupts its compiler, and turns it into an error of its own; neither is seen.

    Raises:
        Interrupted: there was a signal, before the block or in it.
    """
    before, _requests.notice = _requests.notice, None
    _requests.mutes = True
    try:
        check()
        yield
    except Exception:
        if _requests.has_raised:
            raise Interrupted(_requests.number) from None
        raise
    finally:
        _requests.notice, _requests.mutes = before, False
        if _requests.muted is not None:
            os.dup2(_requests.muted, STDERR)
            os.close(_requests.muted)
            _requests.muted = None


def _interrupt_main(number: int, frame: FrameType | None) -> None:
    """Raise in the main thread, once: what follows cleans up."""
    if _requests.notice is None and not _requests.has_raised:
        heartbeat.does("ending after a signal")
        if _requests.mutes:
            _requests.muted = os.dup(STDERR)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, STDERR)
            os.close(nowhere)
        check()


def _watch_grace(interrupts: bool) -> None:
    """Interrupt the main thread, in whatever it waits for, and end the process at the end of the grace."""
    while time.monotonic() < deadline():
        if interrupts and _requests.notice is None and not _requests.has_raised:  # again: it may just begin to wait
            signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
        time.sleep(WATCH_S)
        if not _requests.number:  # a test has put it back
            return
    name = signal.Signals(_requests.number).name
    leave(_requests.number, f"{name}: not ended within launch.grace_s={_requests.grace_s:g}; ended now")


def leave(number: int, text: str) -> None:
    """Say why, and end this process here; its children notice it (`gpt2x.runtime.launch.end_with_launcher`)."""
    from gpt2x.runtime.console import console, stderr

    with contextlib.suppress(Exception):  # a closed terminal
        console.rich.show_cursor()
        stderr.notice(text)
    os._exit(128 + number)


def _end_as_mindspore_asks() -> None:
    """Die of SIGTERM, which MindSpore sends to its own process when the cluster has lost another one."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)
    signal.pause()
