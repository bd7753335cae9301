"""`run.log` in the run directory: what rank 0 and its launcher print, as plain lines, whatever a terminal shows."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TextIO

RUN_LOG = "run.log"  # in the run directory
EARLY_TEXTS = 1000  # kept until the run directory is known


class RunLog:
    """The text log of a run. A file that cannot be written ends the log and never the run.

    What is written before `open` is kept in memory and becomes the beginning of the log.

    Attributes:
        path: the file; None if there is none.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._early: deque[str] = deque(maxlen=EARLY_TEXTS)
        self._file: TextIO | None = None
        self._has_failed = False
        self._lock = threading.Lock()

    def open(self, path: Path, command: str = "") -> OSError | None:
        """Append to `path` from now on.

        Args:
            path: the log.
            command: what was typed; it begins a run or a resumed part, below the date.

        Returns:
            The error, if the file cannot be written.
        """
        self._end()
        head = f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {command}\n" if command else ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
            self.path = path
        except OSError as error:
            self._has_failed = True
            return error
        early = "".join(self._early)
        self._early.clear()
        return self.write(head + early) if head + early else None

    def write(self, text: str) -> OSError | None:
        """Append a text and an end of line; return the error if it is the first one."""
        text = text.rstrip("\n") + "\n"
        with self._lock:
            if self._file is None:
                if not self._has_failed:
                    self._early.append(text)
                return None
            try:
                self._file.write(text)
                self._file.flush()
            except OSError as error:
                self._file, self._has_failed = None, True
                return error
        return None

    def close(self) -> None:
        """End the log, and forget what is kept for it; what is written next belongs to the log that is opened next."""
        self._end()
        self._early.clear()

    def _end(self) -> None:
        with self._lock:
            file, self._file, self._has_failed = self._file, None, False
            self.path = None
        if file is not None:
            with suppress(OSError):  # each line was flushed; what a file system says late is no reason to end a run
                file.close()


run_log = RunLog()
