"""What a run directory has and MLflow lacks, and its way there: metrics, tags, artifacts and the state.

`metrics.jsonl` and `mlflow_run.json` say what MLflow shall have, so that nothing is kept in memory and nothing is lost.
What MLflow rejects stays apart: a metric, a tag or an artifact that it does not take keeps no other from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.tracking import jsonl
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_run import BATCH_METRICS, MlflowRun, grouped, open_run
from gpt2x.tracking.mlflow_store import first_line
from gpt2x.tracking.parameters import tags_for_mlflow

if TYPE_CHECKING:
    from mlflow.entities import Metric

TRIES = 3  # of an item that MLflow rejects although it answers; it is tried again at the end
RETRY_S = 15.0
REJECTED_VALUES = 8  # of one metric: then MLflow does not take the metric, whatever its value
BUSY = (401, 403, 429, 499, 502, 503, 504)  # answers that say nothing about what was given
REJECTED_METRICS = 3  # and none accepted: then MLflow takes no metrics at present


class Sender:
    """Sends what one run directory has.

    Args:
        run_dir: the run directory.
        warn: called with what a user has to know, once each.
        is_live: the run is running, so that MLflow shows it as such.
    """

    def __init__(self, run_dir: Path, warn: Callable[[str], None], *, is_live: bool) -> None:
        self._run_dir, self._warn, self._is_live = run_dir, warn, is_live
        self._path = run_dir / "metrics.jsonl"
        self.run: MlflowRun | None = None
        self.sent = 0  # values
        self.problems: dict[str, str] = {}  # what MLflow did not take -> why
        self._offset = self._file_id = 0
        self._set_aside: set[str] = set()  # metrics, until the end
        self._done: dict[str, int] = {}  # items that MLflow has -> of a file, the time of its change (ns)
        self._tries: dict[str, int] = {}
        self._next_try_s: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="artifacts")
        self._sending: dict[
            str, tuple[int, Future[None]]
        ] = {}  # an artifact store may hang without holding back metrics

    # ---- for the process of a run, and for `gpt2x sync`

    def send(self) -> None:
        """Send what is new.

        Raises:
            Exception: whatever MLflow raises when it does not answer; the next call continues from there.
            UserError: the record is damaged.
            OSError: a file of the run directory cannot be read.
        """
        run = self._open()
        with self._reopening():
            self._send_lines(run)
            self._send_items(run, is_last=False)

    def complete(self) -> None:
        """Send all that MLflow lacks, and close the run if it has ended; `problems` has what MLflow did not take.

        Raises:
            Exception: as `send`.
        """
        run = self._open()
        with self._reopening():
            self._send_lines(run)
            if self._set_aside:
                self._set_aside.clear()
                self._compare(run)
            record = self._record()
            if record.has_ended:
                run.record.status, run.record.end_time_s = record.status, record.end_time_s
                run.terminate()
            self._send_items(run, is_last=True)

    def _record(self) -> RunRecord:
        record = RunRecord.load(self._run_dir)
        assert record is not None
        return record

    def _open(self) -> MlflowRun:
        """Find or create the run; of an earlier one, send what it lacks."""
        if self.run is None:
            run = open_run(self._record(), self._run_dir, self._warn, is_live=self._is_live)
            self._offset, self._done = 0, {}
            if run.is_resumed:
                self._compare(run)
            self.run = run
        return self.run

    @contextmanager
    def _reopening(self) -> Iterator[None]:
        """Find or create the run anew, by the next call, if it was deleted."""
        try:
            yield
        except GoneError:
            self.run = None
            raise

    # ---- metrics

    def _send_lines(self, run: MlflowRun) -> None:
        while self._path.exists():
            status = self._path.stat()
            if self._file_id not in (0, status.st_ino) or status.st_size < self._offset:
                self._compare(run)  # the file was replaced
            self._file_id = status.st_ino
            lines, offset, damaged = jsonl.read_after(self._path, self._offset)
            self._note_damage(damaged)
            if lines:
                self._deliver(run, [each for each in run.metrics_of(lines) if each.key not in self._set_aside])
            if offset == self._offset:
                return
            self._offset = offset

    def _compare(self, run: MlflowRun) -> None:
        """Send the values of the whole file that MLflow lacks."""
        self._offset = 0
        if not self._path.exists():
            return
        status, damaged_lines = self._path.stat(), 0
        lines: list[jsonl.Line] = []
        while True:
            more, offset, damaged = jsonl.read_after(self._path, self._offset)
            if offset == self._offset:
                break
            lines, self._offset, damaged_lines = lines + more, offset, damaged_lines + damaged
        end, self._offset = self._offset, 0  # until all is sent
        self._note_damage(damaged_lines)
        missing, num_changed = run.missing(lines)
        if num_changed:
            self._warn(
                f"MLflow has other values of {num_changed} steps that this run did again with a different result. It "
                "cannot delete them; metrics.jsonl has the newer ones only"
            )
        self._deliver(run, missing)
        self._offset, self._file_id = end, status.st_ino

    def _note_damage(self, num_lines: int) -> None:
        if num_lines:
            self.problems["metrics.jsonl"] = f"{num_lines} damaged lines of {self._path} are left out"

    def _deliver(self, run: MlflowRun, metrics: list[Metric]) -> None:
        """Send values; set those apart that MLflow does not take."""
        for start in range(0, len(metrics), BATCH_METRICS):
            self._deliver_batch(run, metrics[start : start + BATCH_METRICS])

    def _deliver_batch(self, run: MlflowRun, metrics: list[Metric]) -> None:
        try:
            run.log_metrics(metrics)
            self.sent += len(metrics)
            return
        except Exception as error:
            _require_rejection(run, error)
            failure = error
        rejected: dict[str, Exception] = {}
        sent = self.sent
        for name, values in grouped(metrics).items():
            _, reason = self._deliver_values(run, values, REJECTED_VALUES)
            if reason is not None:
                rejected[name] = reason
            if len(rejected) == REJECTED_METRICS and self.sent == sent:
                raise failure  # it takes none at present
        for name, reason in rejected.items():
            self._set_aside.add(name)
            self._reject(f"metric {name}", reason)

    def _deliver_values(self, run: MlflowRun, values: list[Metric], budget: int) -> tuple[int, Exception | None]:
        """Send values of one metric, in halves as long as MLflow rejects them.

        Args:
            run: where to.
            values: of one metric.
            budget: after so many rejected values in a row the rest is not tried.

        Returns:
            What is left of the budget, and the reason if a value was rejected.
        """
        try:
            run.log_metrics(values)
            self.sent += len(values)
            return REJECTED_VALUES, None
        except Exception as error:
            _require_rejection(run, error)
            reason = error
        if len(values) == 1:
            return budget - 1, reason
        middle = len(values) // 2
        for part in (values[:middle], values[middle:]):
            if budget > 0:
                budget, _ = self._deliver_values(run, part, budget)
        return budget, reason

    def _reject(self, name: str, error: BaseException) -> None:
        is_new = name not in self.problems
        self.problems[name] = first_line(error)
        if is_new:
            self._warn(f"MLflow does not take {name}, the rest is sent without it: {first_line(error)}")

    # ---- parameters, data sets, tags, artifacts

    def _send_items(self, run: MlflowRun, *, is_last: bool) -> None:
        record = self._record()
        self._item(run, "the parameters", run.log_params, is_last)
        if record.inputs:
            self._item(run, "the data sets", run.log_inputs, is_last)
        self._send_tags(run, tags_for_mlflow(record.tags), is_last)
        for name in record.artifacts:
            self._send_artifact(run, name, is_last)

    def _send_tags(self, run: MlflowRun, tags: dict[str, str], is_last: bool) -> None:
        run.new_tags |= {key: value for key, value in tags.items() if run.tags.get(key) != value}
        run.tags |= tags
        if not run.new_tags:
            return
        try:
            run.set_tags(run.new_tags)
            run.new_tags.clear()
        except Exception as error:
            _require_rejection(run, error)
            for key, value in list(run.new_tags.items()):
                if self._item(run, f"the tag {key}", lambda item={key: value}: run.set_tags(item), is_last):  # type: ignore[misc]
                    del run.new_tags[key]

    def _send_artifact(self, run: MlflowRun, name: str, is_last: bool) -> None:
        """Begin to send a file unless MLflow has it, or see whether it has arrived; at the end, wait for it."""
        path = self._run_dir / name
        if not path.exists():
            return
        item, version = f"the artifact {name}", path.stat().st_mtime_ns
        if item not in self._sending and self._done.get(item) != version and self._is_due(item, is_last):
            self._sending[item] = version, self._pool.submit(run.log_artifact, path)
        if item in self._sending and (is_last or self._sending[item][1].done()):
            sent_version, future = self._sending.pop(item)
            self._settle(item, sent_version, future.exception())

    def _item(self, run: MlflowRun, name: str, send: Callable[[], None], is_last: bool) -> bool:
        """Send an item unless MLflow has it, and return whether it has; one that it rejects is tried again later."""
        if name not in self._done and self._is_due(name, is_last):
            try:
                send()
                self._settle(name, 0, None)
            except Exception as error:
                _require_rejection(run, error)
                self._settle(name, 0, error)
        return name in self._done

    def _is_due(self, name: str, is_last: bool) -> bool:
        return is_last or (self._tries.get(name, 0) < TRIES and time.monotonic() >= self._next_try_s.get(name, 0.0))

    def _settle(self, name: str, version: int, error: BaseException | None) -> None:
        """Note what has become of an item."""
        if error is None:
            self._done[name] = version
            self._tries.pop(name, None)
            self.problems.pop(name, None)
            return
        self._tries[name] = self._tries.get(name, 0) + 1
        self._next_try_s[name] = time.monotonic() + RETRY_S
        if self._tries[name] == TRIES:
            self._reject(name, error)
        self.problems[name] = first_line(error)


class GoneError(Exception):
    """MLflow answers, and does not have the run any more."""


def _require_rejection(run: MlflowRun, error: BaseException) -> None:
    """Return if MLflow answers and has the run, so that it has rejected what it was given.

    Raises:
        GoneError: it does not have the run.
        Exception: `error` if it is no answer about what was given, or that of a question which fails as well.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):  # the connection, of any of the packages that MLflow uses
            raise error
        cause = cause.__cause__ or cause.__context__
    status = getattr(error, "get_http_status_code", lambda: 0)()
    if status in BUSY:
        raise error
    if not run.is_active:
        raise GoneError
