"""A mirror of the run directory in MLflow.

`MlflowRun` talks to MLflow and waits for it. `MlflowTracker`, which the trainer uses, never waits: it puts lines into a
bounded queue that a background thread empties. What MLflow misses (a dead server, a full queue, a killed process) is in
`metrics.jsonl`, and `gpt2x sync` sends it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gpt2x.config import TrackerConfig
from gpt2x.runtime.console import console
from gpt2x.tracking.mlflow_run import (
    BATCH_METRICS,
    Line,
    MlflowRun,
    RunRecord,
    first_line,
    import_mlflow,
    require_mlflow,
    resolve_uri,
)
from gpt2x.tracking.parameters import MAX_VALUE_CHARS, shortened_for_mlflow
from gpt2x.tracking.tracker import STATUSES, RunInfo

QUEUE_LINES = 10_000
GATHER_S = 1.0  # lines of this many seconds are sent together
RETRY_S = 15.0
FINISH_WAIT_S = 15.0
IMPORT_WAIT_S = 60.0  # the import only reads files
FIRST_LINE_WAIT_S = 60.0  # a run whose first step takes longer is shown before it


class MlflowTracker:
    """`tracker=mlflow`. Only `finish` takes time: at most 15 s once MLflow is imported."""

    def __init__(self, config: TrackerConfig, outputs: Path, warn: Callable[[str], None] | None = None) -> None:
        """Check `config.uri`; nothing is created or contacted yet.

        Args:
            config: the group `tracker`.
            outputs: `paths.outputs`; without a URI, `mlflow.db` and `mlartifacts` are there.
            warn: called with each warning, from any thread; None: the console.

        Raises:
            UserError: the URI cannot be used.
        """
        self._config = config
        self._uri, self._artifact_root = resolve_uri(config.uri, Path(outputs).absolute())
        self._warn = warn or console.warn
        self._queue: queue.Queue[Line | Path] = queue.Queue(QUEUE_LINES)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._has_begun, self._is_imported = threading.Event(), threading.Event()
        self._has_warned = self._is_behind = False

    @property
    def uri(self) -> str:
        """The resolved tracking URI, as `mlflow ui --backend-store-uri` accepts it."""
        return self._uri

    def start(self, run: RunInfo) -> None:
        """Start the background thread, which imports MLflow (1 to 2 s) after the first line of metrics.

        Raises:
            UserError: MLflow is not installed, or `mlflow_run.json` is damaged.
        """
        self._run_dir = Path(run.run_dir)
        earlier = RunRecord.load(self._run_dir)
        run_id = run.resume_id or (earlier.run_id if earlier and earlier.uri == self._uri else None)
        self._record = RunRecord(
            uri=self._uri,
            artifact_root=self._artifact_root,
            experiment=self._config.experiment or run.experiment,
            run_name=self._config.run_name or run.run_name,
            params=shortened_for_mlflow(run.params),
            tags={key: value[:MAX_VALUE_CHARS] for key, value in run.tags.items()},
            start_time_s=time.time(),
            run_id=run_id,
            artifacts=earlier.artifacts if earlier else [],
        )
        self._record.save(self._run_dir)
        require_mlflow()
        self._thread = threading.Thread(target=self._mirror, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Queue one line; a full queue drops it, and `gpt2x sync` sends it later."""
        self._has_begun.set()
        self._put((int(step), time_s, {key: float(value) for key, value in metrics.items()}))

    def log_artifact(self, path: Path) -> None:
        """Queue a file or a directory; it is read when it is sent."""
        path = Path(path).absolute()
        base = self._run_dir.absolute()
        name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
        if name not in self._record.artifacts:
            self._record.artifacts.append(name)
            self._record.save(self._run_dir)
        self._put(path)

    def finish(self, status: str) -> None:
        """Close the run, after at most 15 s for what is queued; a second call does nothing.

        Raises:
            ValueError: the status is not FINISHED, FAILED or KILLED.
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r} is not one of {', '.join(STATUSES)}")
        if self._thread is None:
            return
        self._record.status = status
        self._record.save(self._run_dir)
        self._closing.set()
        self._has_begun.set()
        self._is_imported.wait(IMPORT_WAIT_S)
        self._thread.join(FINISH_WAIT_S)
        if self._thread.is_alive() or self._is_behind:
            self._warn(
                f"MLflow ({self._uri}) lacks a part of this run, which metrics.jsonl has. Send it later: "
                f"gpt2x sync {self._run_dir}"
            )
        self._thread = None

    def _put(self, item: Line | Path) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._is_behind = True

    def _mirror(self) -> None:
        """Run the background thread: gather and send, and try again later if MLflow does not answer."""
        run: MlflowRun | None = None
        end_system_metrics: Callable[[], None] | None = None
        pending: list[Line | Path] = []
        self._has_begun.wait(FIRST_LINE_WAIT_S)  # until then the run's start needs the processor
        while True:
            is_last = self._closing.is_set()  # read before the queue, so that nothing stays in it
            pending = pending or self._gather()
            try:
                if run is None:
                    run = self._open_run()
                    if self._config.system_metrics:
                        end_system_metrics = run.start_system_metrics()
                self._send(run, pending)
                pending = []
                if is_last and self._queue.empty():
                    if end_system_metrics is not None:
                        end_system_metrics()
                    run.terminate(self._record.status)
                    return
            except Exception as error:  # whatever MLflow raises must not end a training run
                self._warn_once(error)
                if is_last:
                    self._is_behind = True
                    return
                self._closing.wait(RETRY_S)

    def _gather(self) -> list[Line | Path]:
        self._closing.wait(GATHER_S)
        items: list[Line | Path] = []
        with contextlib.suppress(queue.Empty):
            while len(items) < BATCH_METRICS:
                items.append(self._queue.get_nowait())
        return items

    def _open_run(self) -> MlflowRun:
        try:
            import_mlflow()
        finally:
            self._is_imported.set()
        earlier_id = self._record.run_id
        run = MlflowRun(self._record, self._run_dir)
        if earlier_id not in (None, run.run_id):
            self._warn(f"MLflow ({self._uri}) has no run {earlier_id}; the resumed part becomes a new run")
        return run

    def _send(self, run: MlflowRun, items: list[Line | Path]) -> None:
        run.log_lines(item for item in items if not isinstance(item, Path))
        for path in dict.fromkeys(item for item in items if isinstance(item, Path)):
            if path.exists():
                run.log_artifact(path)

    def _warn_once(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"MLflow ({self._uri}) does not answer, the run continues without it: {first_line(error)}")


def create(config: TrackerConfig, outputs: Path) -> MlflowTracker:
    """Return the mirror in MLflow.

    Raises:
        UserError: `config.uri` cannot be used.
    """
    return MlflowTracker(config, outputs)
