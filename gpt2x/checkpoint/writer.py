"""The checkpoints of a run, written by a thread of each rank beside training (docs/design/saving.md).

MindSpore's collectives belong to the main thread. So the threads agree by files: a rank's index, which it writes last,
says that its slices are on the disk. The main threads exchange what has failed, when they wait for the threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import numpy as np

from gpt2x.checkpoint.tensors import Values
from gpt2x.checkpoint.write import Content, Sliced, Tensors, complete, missing_indexes, read_indexes, write_slices
from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.runtime.files import NewDirectory, cannot_write

Exchange = Callable[[str], list[str]]  # collective: the text of every rank, on every rank, in the order of ranks

POLL_S = 0.05  # between two looks for what the other ranks have written
VISIBLE_S = 60.0  # until rank 0 must see what a different rank has written; network file systems cache directories
LEAVE_S = 20.0  # what rank 0 of a run that has failed grants the other ranks


@dataclass(frozen=True)
class Outcome:
    """What has become of a save, the same on every rank.

    Attributes:
        directory: the checkpoint.
        failure: why it does not exist; "" if it does.
        waited_s: how long the main thread waited for it.
    """

    directory: Path
    failure: str
    waited_s: float


class CheckpointWriter:
    """Writes one checkpoint at a time.

    `save` and `wait` are called by the main threads of all ranks, in the same order; nothing else is collective.

    Args:
        rank: this process' rank. All ranks see the same file system.
        world_size: number of processes.
        exchange: see `Exchange`.
        retries: how often a write is tried again that the system rejected.
        retry_s: seconds before that.
    """

    def __init__(
        self,
        *,
        rank: int = 0,
        world_size: int = 1,
        exchange: Exchange = lambda text: [text],
        retries: int = 0,
        retry_s: float = 0.0,
    ):
        self.rank, self.world_size, self.exchange = rank, world_size, exchange
        self.retries, self.retry_s = retries, retry_s
        self._mark = ""  # of hidden names: the ranks share it, and no crashed run has used it
        self._job: _Job | None = None
        self._copies = Copies()

    def save(
        self,
        directory: Path,
        tensors: Tensors,
        content: Content,
        *,
        copies: bool = True,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin to write a checkpoint, completely or not at all; `wait` says what has become of it.

        Args:
            directory: the checkpoint, such as `RUN/checkpoints/step_100`; one that exists is replaced at the end.
            tensors: group -> name -> values, whole or as a `Sliced`, in numpy dtypes. A rank leaves out tensors of
                which it writes nothing. Exactly one rank writes each box of a tensor.
            content: all else; rank 0's is used.
            copies: copy the tensors, since they change before `wait` is called. The memory is kept for the next save.
            before: called on rank 0, in the thread, before the checkpoint gets its name.
            after: called on rank 0, in the thread, once the checkpoint is on the disk.

        Raises:
            ValueError: the last save was not waited for.
        """
        if self._job is not None:
            raise ValueError(f"{self._job.new.target} is being written; wait for it")
        self._mark = self._mark or self.exchange(uuid4().hex[:8])[0]
        new = NewDirectory(directory, self._mark)
        self._job = _Job(self, new, self._copies.of(tensors) if copies else tensors, content, before, after)
        self._job.start()

    def wait(self) -> Outcome | None:
        """Wait until the last save has ended on all ranks; None if there is none.

        Raises:
            ValueError: slices overlap, or do not cover their tensor.
        """
        job = self._job
        if job is None:
            return None
        started = time.perf_counter()
        job.has_written.wait()
        failures = self.exchange(job.failure)
        job.meet(any(failures))
        job.join()
        if not any(failures):
            failures = self.exchange(job.failure)
        self._job = None
        if job.error is not None:
            raise job.error
        prefix = "rank {}: " if self.world_size > 1 else ""
        said = [prefix.format(rank) + failure for rank, failure in enumerate(failures) if failure]
        return Outcome(job.new.target, "; ".join(said), time.perf_counter() - started)

    def close(self) -> None:
        """End the last save on this rank alone, when the run has failed and the ranks no longer meet."""
        job, self._job = self._job, None
        if job is None:
            return
        job.hurries.set()
        job.has_written.wait()
        if self.world_size > 1 and not job.failure:
            job.join(LEAVE_S)
        job.meet(True)
        job.join()
        if job.failure:
            console.warn(job.failure)


class _Job(Thread):
    """One save on one rank."""

    def __init__(
        self,
        writer: CheckpointWriter,
        new: NewDirectory,
        tensors: Tensors,
        content: Content,
        before: Callable[[], object],
        after: Callable[[], object],
    ):
        super().__init__(name=f"saving {new.target.name}", daemon=True)
        self.writer, self.new, self.tensors, self.content = writer, new, tensors, content
        self.before, self.after = before, after
        self.has_written, self.have_met, self.hurries = Event(), Event(), Event()
        self.has_failed = False  # on some rank
        self.failure = ""
        self.error: Exception | None = None

    def meet(self, has_failed: bool) -> None:
        """Learn from the main thread that each rank has written its slices, or has failed."""
        self.has_failed = has_failed
        self.have_met.set()

    def run(self) -> None:
        try:
            self.write()
        except OSError as error:
            self.failure = str(cannot_write(self.new.target, error))
        except UserError as error:
            self.failure = str(error)
        except Exception as error:  # a mistake of gpt2x: the main thread raises it
            self.failure, self.error = f"{type(error).__name__}: {error}", error
        finally:
            self.tensors = {}
            self.has_written.set()
            if self.writer.rank == 0:
                if self.failure and self.writer.world_size > 1:
                    self.have_met.wait()  # no rank writes there any more
                self.new.drop()

    def write(self) -> None:
        self.again(self.write_own)
        self.tensors = {}
        self.has_written.set()
        if self.writer.rank != 0:
            return
        self.await_others()
        indexes = read_indexes(self.new.temporary, self.writer.world_size)

        def finish() -> None:
            if not self.new.is_in_place:
                complete(self.new.temporary, indexes, self.content)
                self.before()
            self.new.put_in_place()

        self.again(finish)
        self.after()

    def write_own(self) -> None:
        self.new.temporary.mkdir(parents=True, exist_ok=True)
        write_slices(self.new.temporary, self.tensors, self.writer.rank, self.writer.world_size)

    def await_others(self) -> None:
        """Wait until the index of each rank is there.

        Raises:
            UserError: a different rank has failed, or what it has written is not seen here.
        """
        until = None
        while missing := missing_indexes(self.new.temporary, self.writer.world_size):
            if self.have_met.wait(POLL_S):
                if self.has_failed:
                    raise UserError(f"cannot write {self.new.target}: another process failed.")
                time.sleep(POLL_S)
                until = until or time.monotonic() + VISIBLE_S
                if time.monotonic() > until:
                    raise UserError(
                        f"cannot write the checkpoint: {missing[0]}, which a different process has created, does not "
                        "exist here. All processes need one shared file system; give it as paths.outputs=DIRECTORY."
                    )

    def again(self, work: Callable[[], None]) -> None:
        """Do `work`, and try again what the system rejects.

        Raises:
            OSError: the last try was rejected as well.
        """
        for left in range(self.writer.retries, -1, -1):
            try:
                work()
                return
            except OSError as error:
                if not left:
                    raise
                console.warn(
                    f"{self.new.target.name} cannot be written yet ({error.strerror or error}); trying again in "
                    f"{self.writer.retry_s:g} s (tries left: {left})"
                )
                self.hurries.wait(self.writer.retry_s)


class Copies:
    """Copies of tensors in row-major order, in memory that is used again at the next save: new pages take longer."""

    def __init__(self) -> None:
        self._arrays: dict[tuple[str, str, int], np.ndarray] = {}

    def of(self, tensors: Tensors) -> Tensors:
        """Return tensors with their values copied, which are valid until the next call."""
        return {
            group: {name: self._entry(group, name, entry) for name, entry in entries.items()}
            for group, entries in tensors.items()
        }

    def _entry(self, group: str, name: str, entry: Values | Sliced) -> Values | Sliced:
        if not isinstance(entry, Sliced):
            return self._copy((group, name, 0), entry)
        parts = [
            (start, self._copy((group, name, number), values)) for number, (start, values) in enumerate(entry.parts)
        ]
        return Sliced(entry.shape, parts)

    def _copy(self, key: tuple[str, str, int], values: Values) -> Values:
        if not isinstance(values, np.ndarray):
            return values  # lies in a file, and does not change
        array = self._arrays.get(key)
        if array is None or array.shape != values.shape or array.dtype != values.dtype:
            array = self._arrays[key] = np.empty(values.shape, values.dtype)
        np.copyto(array, values)
        return array
