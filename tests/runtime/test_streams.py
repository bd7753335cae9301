"""Standard output that nobody reads any more, or that has no room, costs no run; what was lost is said."""

import errno
import io
import os
import resource
import sys
import threading
import time

import pytest
import rich.console
from rich.live import Live

from gpt2x.errors import RunError
from gpt2x.runtime import streams
from gpt2x.runtime.run_log import RunLog
from gpt2x.runtime.streams import NOBODY_READS, Lasting, lasting


@pytest.fixture(autouse=True)
def log(monkeypatch, tmp_path):
    """The log of a run."""
    log = RunLog()
    monkeypatch.setattr(streams, "run_log", log)
    yield log
    log.close()


def pipe():
    """Return a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def terminal():
    """Return a terminal whose window was closed."""
    window, terminal = os.openpty()
    os.close(window)
    return terminal


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


LOST = {pipe: errno.EPIPE, terminal: errno.EIO, full_disk: errno.ENOSPC}


@pytest.fixture(params=LOST, ids=lambda broken: broken.__name__)
def broken(request):
    """Return a descriptor that cannot be written, and the reason."""
    descriptor = request.param()
    yield descriptor, LOST[request.param]
    os.close(descriptor)


@pytest.fixture
def stdout(monkeypatch):
    """Return what makes a descriptor standard output."""

    def replace(descriptor):
        file = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        monkeypatch.setattr(sys, "stdout", lasting(file, descriptor))

    return replace


def test_what_cannot_be_written_is_dropped_once_and_for_all_and_the_log_says_so(broken, log, tmp_path):
    descriptor, reason = broken
    log.open(tmp_path / "run.log")
    raw = Lasting(descriptor, "standard output")
    assert [raw.write(b"some text"), raw.write(b"more")] == [9, 4]
    assert raw.fault.errno == reason
    assert os.write(descriptor, b"by MindSpore") == 12
    assert os.fstat(descriptor).st_rdev == os.stat(os.devnull).st_rdev
    text = f"standard output takes no more text ({os.strerror(reason)}); the run continues without it\n"
    assert log.path.read_text() == text
    assert raw.writable()
    assert raw.fileno() == descriptor
    assert not raw.isatty()


def test_a_reader_that_leaves_in_the_middle_costs_nothing():
    reading, writing = os.pipe()
    reader = threading.Thread(target=lambda: (os.read(reading, 10), os.close(reading)))
    reader.start()
    raw = Lasting(writing, "the output")
    assert raw.write(bytes(1 << 20)) == 1 << 20
    reader.join()
    assert raw.fault.errno == errno.EPIPE
    os.close(writing)


def test_a_full_pipe_that_another_program_made_non_blocking_gets_every_byte():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    text, got = os.urandom(1 << 20), bytearray()

    def read():
        while block := os.read(reading, 1 << 16):
            got.extend(block)
            time.sleep(0.001)

    reader = threading.Thread(target=read)
    reader.start()
    raw = Lasting(writing, "the output")
    assert raw.write(text) == len(text)
    os.close(writing)
    reader.join()
    os.close(reading)
    assert bytes(got) == text
    assert raw.fault is None


def test_without_a_free_descriptor_writing_does_not_fail_either():
    descriptor, limits = pipe(), resource.getrlimit(resource.RLIMIT_NOFILE)
    raw = Lasting(descriptor, "the output")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        assert [raw.write(b"text"), raw.write(b"more")] == [4, 4]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raw.fault.errno == errno.EPIPE
    os.close(descriptor)


def test_a_command_whose_result_is_its_output_ends_as_by_sigpipe(broken, stdout):
    descriptor, _ = broken
    stdout(descriptor)
    streams.require_reader()
    print("a result")
    with pytest.raises(RunError, match=r"^$") as error:
        streams.require_reader()
    assert error.value.status == NOBODY_READS == 141


def test_a_command_without_a_log_fails_unless_only_its_reader_left(broken, stdout, log, tmp_path):
    descriptor, reason = broken
    stdout(descriptor)
    streams.require_written()
    print("a result")
    if reason == errno.EPIPE:
        streams.require_written()
    else:
        with pytest.raises(RunError, match=rf"cannot be written \({os.strerror(reason)}\)") as error:
            streams.require_written()
        assert error.value.status == 1
    log.open(tmp_path / "run.log")
    streams.require_written()


def test_a_stream_that_stands_in_for_standard_output_has_no_fault(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    print("a result")
    streams.require_reader()
    streams.require_written()


def in_child(body):
    """Run `body` in a forked process, which may spoil its standard streams; return what it returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(writing, 50)
            os.write(50, repr(body()).encode())
        except BaseException as error:
            os.write(50, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_standard_descriptors_that_were_closed_are_opened_before_a_file_gets_their_number(tmp_path, closed):
    def body():
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            if number in closed:
                os.close(number)
                setattr(sys, name, None)  # as Python starts then
        streams.set_up()
        file = os.open(tmp_path / "checkpoint", os.O_RDWR | os.O_CREAT)
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            if number in closed:
                print("日本", file=stream, flush=True)
        return file > 2, os.pread(file, 10, 0), [os.get_inheritable(number) for number in closed]

    assert in_child(body) == repr((True, b"", [True] * len(closed)))


def test_set_up_twice_makes_both_streams_last_and_says_on_standard_error_where_the_log_is(log, tmp_path):
    def body():
        log.open(tmp_path / "run.log")
        os.dup2(pipe(), 1)
        os.dup2(os.open(tmp_path / "stderr", os.O_WRONLY | os.O_CREAT), 2)
        for number, name in ((1, "stdout"), (2, "stderr")):
            setattr(sys, name, open(number, "w", encoding="ascii", closefd=False))  # noqa: SIM115
        streams.set_up()
        streams.set_up()
        print("中", file=sys.stderr, flush=True)
        print("a result", flush=True)
        sys.stderr.flush()
        return sys.stdout.buffer.raw.what, sys.stderr.buffer.raw.what

    assert in_child(body) == "('standard output', 'standard error')"
    assert (tmp_path / "stderr").read_text() == (
        "\\u4e2d\nstandard output takes no more text (Broken pipe); the run continues without it, see "
        f"{tmp_path / 'run.log'}\n"
    )


def test_a_terminal_that_is_closed_below_a_live_bar_costs_only_the_bar(log, tmp_path):
    def body():
        log.open(tmp_path / "run.log")
        reading, writing = os.pipe()
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(writing, number)
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        os.close(writing)
        streams.set_up()
        console = rich.console.Console(force_terminal=True)
        with Live(console=console):  # sys.stderr is the console's now
            os.close(reading)
            console.print("a step")
        return type(sys.stdout.buffer.raw.fault).__name__

    assert in_child(body) == "'BrokenPipeError'"


def test_a_stream_in_memory_stays_and_escapes_what_its_encoding_lacks(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    streams.set_up()
    print("中")
    sys.stdout.flush()
    assert sys.stdout is stream
    assert stream.buffer.getvalue() == b"\\u4e2d\n"
