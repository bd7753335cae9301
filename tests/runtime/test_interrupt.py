"""What a process does with a signal: wherever its main thread waits, once or twice, in a block that defers it."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from gpt2x.runtime import interrupt
from gpt2x.runtime.interrupt import Interrupted, deferred, prompt, request


@pytest.fixture(autouse=True)
def no_signal(monkeypatch):
    """No test sees a signal of another one."""
    monkeypatch.setattr(interrupt, "_requests", interrupt._Requests())


class Child:
    """A forked process that receives signals."""

    def __init__(self, pid, answers, errors):
        self.pid, self.answers, self.errors = pid, answers, errors

    def send(self, number):
        os.kill(self.pid, number)

    def says(self, text):
        """Wait for a text that it says."""
        assert os.read(self.answers, len(text)) == text.encode()

    def end(self):
        """Return its status, negative if a signal ended it, and what it wrote to standard error."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.pid = 0
        return status, self.errors.read_text()


@pytest.fixture
def child(tmp_path):
    """Return what runs `body(say)` in a child, whose status is that of the signal that interrupts it, or 0."""

    @contextmanager
    def run(body, **options):
        answers, answer = os.pipe()
        errors = tmp_path / "stderr"
        errors.touch()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.dup2(os.open(errors, os.O_WRONLY), 2)
                sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
                interrupt.catch(**options)
                body(lambda text: os.write(answer, text.encode()))
                status = 0
            except Interrupted as interrupted:
                status = interrupted.status
            finally:
                os._exit(status)
        os.close(answer)
        one = Child(pid, answers, errors)
        try:
            yield one
        finally:
            os.close(answers)
            if one.pid:
                os.kill(one.pid, signal.SIGKILL)
                os.waitpid(one.pid, 0)

    return run


def sleeps(path):
    time.sleep(60)


def computes(path):
    while True:
        pass


def waits_for_a_lock(path):
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def waits_for_an_event(path):
    threading.Event().wait()


def joins_a_thread(path):
    thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
    thread.start()
    thread.join()


def reads_a_pipe(path):
    os.read(os.pipe()[0], 1)


def waits_for_a_program(path):
    subprocess.run(["sleep", "60"], check=False)


WAITS = (sleeps, computes, waits_for_a_lock, waits_for_an_event, joins_a_thread, reads_a_pipe, waits_for_a_program)


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
def test_a_signal_interrupts_whatever_the_main_thread_waits_for(child, tmp_path, wait):
    path = tmp_path / "lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        def body(say):
            interrupt.set_grace(1e6)  # the end of the grace does not help
            say("ready")
            wait(path)

        with child(body) as one:
            one.says("ready")
            one.send(signal.SIGTERM)
            assert one.end() == (143, "")


@pytest.mark.parametrize("number", interrupt.STOPS)
def test_the_status_is_that_of_a_shell_and_what_is_ignored_stays_so(child, number):
    other = next(each for each in interrupt.STOPS if each != number)

    def body(say):
        assert signal.getsignal(other) == signal.SIG_IGN  # in programs that it starts as well
        say("ready")
        time.sleep(60)

    before = signal.signal(other, signal.SIG_IGN)
    try:
        with child(body) as one:
            one.says("ready")
            one.send(other)
            one.send(number)
            assert one.end() == (128 + number, "")
    finally:
        signal.signal(other, before)
    assert interrupt.STATUSES[128 + number] == number


def test_a_deferred_signal_is_noted_and_a_second_one_ends_at_once(child, monkeypatch):
    monkeypatch.setattr(interrupt, "SAME_EVENT_S", 0.0)

    def body(say):
        with deferred("it saves"):
            say("ready")
            while not interrupt.requested():
                time.sleep(0.01)
            interrupt._requests.since -= 1.0
            say("noted")
            time.sleep(60)

    with child(body) as one:
        one.says("ready")
        one.send(signal.SIGHUP)
        one.says("noted")
        one.send(signal.SIGINT)
        status, errors = one.end()
    assert status == 130
    assert errors == "SIGHUP: it saves; a second signal ends at once\nSIGINT: ended at once\n"


def test_a_request_interrupts_nobody_in_a_process_that_does_not_receive_signals(child):
    def body(say):
        interrupt._requests.is_caught = False
        threading.Thread(target=request, args=(signal.SIGTERM,)).start()
        while not interrupt.requested():
            time.sleep(0.01)
        time.sleep(2 * interrupt.WATCH_S)

    with child(body) as one:
        assert one.end() == (0, "")


def test_one_event_that_arrives_twice_is_one_signal(monkeypatch, capsys):
    ends = []
    monkeypatch.setattr(interrupt, "leave", lambda number, text: ends.append(number))
    with deferred("it saves"):
        for seconds, may_repeat, expected in (
            (0.0, False, []),
            (interrupt.SAME_EVENT_S + 1, True, []),  # of a launched process
            (interrupt.SAME_EVENT_S + 1, False, [signal.SIGTERM]),
        ):
            request(signal.SIGTERM, may_repeat=True)
            interrupt._requests.since = time.monotonic() - seconds
            request(signal.SIGTERM, may_repeat=may_repeat)
            assert ends == expected
    assert capsys.readouterr().err == ""  # the launcher says it


def test_a_process_that_does_not_end_within_the_grace_is_ended(child):
    def body(say):
        interrupt.set_grace(interrupt.MARGIN_S)
        with deferred("it saves"):
            say("ready")
            time.sleep(60)

    with child(body) as one:
        one.says("ready")
        one.send(signal.SIGUSR1)
        status, errors = one.end()
    assert status == 138
    assert errors.endswith("SIGUSR1: not ended within launch.grace_s=2; ended now\n")


def test_the_deadline_is_the_end_of_the_grace():
    assert interrupt.deadline() == float("inf")
    interrupt.check()
    interrupt._requests.number, interrupt._requests.since = signal.SIGTERM, 100.0
    interrupt.set_grace(12.0)
    assert interrupt.deadline() == 110.0
    assert interrupt.deadline(before_s=8.0) == 102.0
    assert not interrupt.is_ending()
    with pytest.raises(Interrupted, match="interrupted by SIGTERM"):
        interrupt.check()
    assert interrupt.is_ending()


def test_a_compiler_is_interrupted_in_a_deferred_block_and_what_it_prints_then_is_not_seen(child):
    def compiles(say):
        os.write(2, b"compiling\n")
        say("ready")
        try:
            time.sleep(60)
        except Interrupted:
            os.write(2, b"a page about it\n")
            raise RuntimeError("the compiler's") from None

    def body(say):
        with deferred("it saves"):
            with pytest.raises(Interrupted), prompt():
                compiles(say)
            os.write(2, b"seen again\n")
            with pytest.raises(Interrupted), prompt():
                os.write(2, b"never begun\n")

    with child(body) as one:
        one.says("ready")
        one.send(signal.SIGTERM)
        assert one.end() == (0, "compiling\nseen again\n")


def test_an_error_of_a_compiler_without_a_signal_stays():
    with deferred("it saves"), pytest.raises(RuntimeError, match="its own"), prompt():
        raise RuntimeError("its own")
    assert interrupt._requests.notice is None


def test_the_clean_up_after_a_signal_is_not_interrupted_again():
    interrupt._requests.number = signal.SIGTERM
    with pytest.raises(Interrupted):
        interrupt._interrupt_main(signal.SIGINT, None)
    interrupt._interrupt_main(signal.SIGINT, None)


def test_sigterm_by_mindspore_itself_kills_a_launched_process(child):
    def body(say):
        with deferred("it saves"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)

    with child(body, is_launched=True) as one:
        assert one.end() == (-signal.SIGTERM, "")


def test_signals_are_blocked_so_that_no_handler_of_mindspore_runs_and_caught_once(child):
    def body(say):
        threads = threading.active_count()
        interrupt.catch()
        assert threading.active_count() == threads
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= set(interrupt.STOPS)

    with child(body) as one:
        assert one.end() == (0, "")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    thread = threading.Thread(target=interrupt.catch)  # of a server that runs a command
    thread.start()
    thread.join()
    assert not interrupt._requests.is_caught
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
