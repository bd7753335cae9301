"""Standard output and error that outlive whoever reads them: a pipe to `head`, a terminal, a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys

from gpt2x.errors import RunError
from gpt2x.runtime.run_log import run_log

NOBODY_READS = 128 + 13  # the status of a program that SIGPIPE ends
ERRORS = "backslashreplace"  # how Python opens standard error: a character that the encoding lacks is \u4e2d


class Lasting(io.RawIOBase):
    """A descriptor to which writing does not fail; once it would, all that follows is dropped.

    A program whose output is a pipe without a reader usually ends. A training has a log, and must not be lost with the
    window in which somebody looked at it.

    Args:
        descriptor: open for writing.
        what: its name, for a message.
        replaced: the stream that had the descriptor; kept, since it may close the descriptor at its end.
    """

    def __init__(self, descriptor: int, what: str, replaced: io.TextIOWrapper | None = None):
        super().__init__()
        self.descriptor, self.what, self.replaced = descriptor, what, replaced
        self.fault: OSError | None = None  # with which it was lost

    def write(self, data: object) -> int:
        """Write all bytes, or drop them; return their number."""
        rest = memoryview(data).cast("B")  # type: ignore[arg-type]
        size = len(rest)
        while rest and self.fault is None:
            try:
                rest = rest[os.write(self.descriptor, rest) :]
            except BlockingIOError:  # another program has made the terminal non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:
                self._drop(error)
        return size

    def _drop(self, error: OSError) -> None:
        """Send to nowhere what is written from now on, by MindSpore as well, and say so."""
        self.fault = error
        with contextlib.suppress(OSError):  # no descriptor is left; then what MindSpore writes fails
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.descriptor)
            os.close(nowhere)
        text = f"{self.what} takes no more text ({error.strerror}); the run continues without it"
        run_log.write(text)
        if run_log.path and self.descriptor == 1:
            with contextlib.suppress(OSError):  # not through sys.stderr: a live bar sends that through this very stream
                os.write(2, f"{text}, see {run_log.path}\n".encode())

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.descriptor

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self.descriptor)

    def writable(self) -> bool:
        """Return True."""
        return True


def set_up() -> None:
    """Make both streams `Lasting`, and open descriptors that were closed before this process was started.

    A file that is opened while descriptor 1 is free would get it, and all that is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", errors=ERRORS, closefd=False))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            raw = getattr(stream.buffer, "raw", stream.buffer)
            if isinstance(raw, io.FileIO):
                setattr(sys, name, lasting(stream, raw.fileno()))
            else:
                stream.reconfigure(errors=ERRORS)


def lasting(stream: io.TextIOWrapper, descriptor: int) -> io.TextIOWrapper:
    """Return a stream like `stream` to which writing does not fail."""
    stream.flush()
    what = {1: "standard output", 2: "standard error"}.get(descriptor, "the output")
    return io.TextIOWrapper(
        io.BufferedWriter(Lasting(descriptor, what, stream)),
        encoding=stream.encoding,
        errors=ERRORS,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def require_reader() -> None:
    """End a command whose result is what it prints, if nobody reads that any more.

    Raises:
        RunError: with the status that SIGPIPE would have given.
    """
    if fault():
        raise RunError(status=NOBODY_READS)


def fault() -> OSError | None:
    """Return the error after which standard output was dropped, or None."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.fault if isinstance(raw, Lasting) else None


def require_written() -> None:
    """End a command that has no log, if something else than its reader kept what it printed from being written.

    Raises:
        RunError: with the reason.
    """
    error = fault()
    if error and error.errno != errno.EPIPE and run_log.path is None:
        raise RunError(f"standard output cannot be written ({error.strerror}): what was printed is not complete.")
