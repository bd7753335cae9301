"""A mirror of the run directory in MLflow.

`MlflowRun` talks to MLflow and waits for it. `MlflowTracker`, which the trainer uses, never waits: it puts lines into a
bounded queue that a background thread empties. What MLflow misses (a dead server, a full queue, a killed process) is in
`metrics.jsonl`, and `gpt2x sync` sends it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO

from gpt2x.config import TrackerConfig
from gpt2x.runtime.console import console
from gpt2x.tracking.mlflow_record import RunRecord, hold_live
from gpt2x.tracking.mlflow_run import BATCH_METRICS, NOTE, Line, MlflowRun, lines_of, open_run
from gpt2x.tracking.mlflow_store import (
    curves_page,
    first_line,
    import_mlflow,
    require_mlflow,
    resolve_uri,
    run_page,
    sweep_page,
    where_to_look,
)
from gpt2x.tracking.parameters import checked_tags, shortened_for_mlflow, tags_for_mlflow
from gpt2x.tracking.tracker import RunInfo, require_status

QUEUE_LINES = 10_000
GATHER_S = 1.0  # lines of this many seconds are sent together
RETRY_S = 15.0
FINISH_WAIT_S = 15.0
IMPORT_WAIT_S = 60.0  # the import only reads files
FIRST_LINE_WAIT_S = 60.0  # a run whose first step takes longer is shown before it
LOSSES = ("train/loss", "val/loss")  # the page that is printed shows them

Item = Line | Path | dict[str, str]  # metrics, an artifact, tags


class MlflowTracker:
    """`tracker=mlflow`. Only `finish` takes time: at most 15 s once MLflow is imported."""

    def __init__(self, config: TrackerConfig, outputs: Path, warn: Callable[[str], None] | None = None) -> None:
        """Check `config.uri` and `config.tags`; nothing is created or contacted yet.

        Args:
            config: the group `tracker`.
            outputs: `paths.outputs`; without a URI, `mlflow.db` and `mlartifacts` are there.
            warn: called with each warning, from any thread; None: the console.

        Raises:
            UserError: the URI or a tag cannot be used.
        """
        self._config = config
        self._tags = checked_tags(config.tags) | ({NOTE: config.description} if config.description else {})
        self._uri, self._artifact_root = resolve_uri(config.uri, Path(outputs).absolute())
        self._warn = warn or console.warn
        self._queue: queue.Queue[Item] = queue.Queue(QUEUE_LINES)
        self._thread: threading.Thread | None = None
        self._live: IO[str] | None = None
        self._experiment_id = ""  # until MLflow has answered
        self._curves: dict[str, None] = {}  # metrics of LOSSES that the run has
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
        is_same_store = earlier is not None and earlier.uri == self._uri
        is_job = run.sweep_dir is not None
        self._record = RunRecord(
            uri=self._uri,
            artifact_root=self._artifact_root,
            experiment=self._config.experiment or run.experiment,
            run_name=run.run_name if is_job else self._config.run_name or run.run_name,
            is_name_fixed=bool(self._config.run_name) and not is_job,
            params=shortened_for_mlflow(run.params),
            tags=(earlier.tags if earlier and run.is_sweep else {}) | tags_for_mlflow(run.tags) | self._tags,
            inputs=[{key: value for key, value in asdict(each).items() if value is not None} for each in run.inputs],
            start_time_s=earlier.start_time_s if earlier and is_same_store else time.time(),
            run_id=run.resume_id or (earlier.run_id if earlier and is_same_store else None),
            metric_names=earlier.metric_names if earlier and is_same_store else {},
            artifacts=earlier.artifacts if earlier else [],
            sweep_dir=os.path.relpath(run.sweep_dir, self._run_dir) if run.sweep_dir else None,
            sweep_name=run.sweep_name,
            is_sweep=run.is_sweep,
        )
        self._record.save(self._run_dir)
        self._live = hold_live(self._run_dir)
        require_mlflow()
        self._thread = threading.Thread(target=self._mirror, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Queue one line; a full queue drops it, and `gpt2x sync` sends it later."""
        self._has_begun.set()
        self._curves |= dict.fromkeys(key for key in LOSSES if key in metrics)
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

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Queue tags."""
        tags = tags_for_mlflow(tags)
        self._record.tags |= tags
        self._record.save(self._run_dir)
        self._put(tags)

    def finish(self, status: str) -> None:
        """Close the run, after at most 15 s for what is queued, and print its page; a second call does nothing.

        Raises:
            ValueError: the status is not FINISHED, FAILED or KILLED.
        """
        require_status(status)
        if self._thread is None:
            return
        self._record.status, self._record.end_time_s = status, time.time()
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
        elif self._record.sweep_dir is None:  # the page of a sweep shows its jobs
            console.notice(where_to_look(self._uri, self._page()))
        self._thread = None
        if self._live is not None:
            self._live.close()

    def _page(self) -> str:
        assert self._record.run_id is not None
        ids = self._experiment_id, self._record.run_id
        if self._record.is_sweep:
            return sweep_page(*ids)
        return curves_page(*ids, list(self._curves)) if self._curves else run_page(*ids)

    def _put(self, item: Item) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._is_behind = True

    def _mirror(self) -> None:
        """Run the background thread: gather and send, and try again later if MLflow does not answer."""
        run: MlflowRun | None = None
        end_system_metrics: Callable[[], None] | None = None
        pending: list[Item] = []
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
                    run.terminate()
                    return
            except Exception as error:  # whatever MLflow raises must not end a training run
                self._warn_once(error)
                if is_last:
                    self._is_behind = True
                    return
                self._closing.wait(RETRY_S)

    def _gather(self) -> list[Item]:
        self._closing.wait(GATHER_S)
        items: list[Item] = []
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
        run = open_run(self._record, self._run_dir, self._warn, is_live=True)
        if earlier_id not in (None, run.run_id):
            run.log_lines(lines_of(self._run_dir))  # those of before the run was resumed too
        self._experiment_id = run.experiment_id
        return run

    def _send(self, run: MlflowRun, items: list[Item]) -> None:
        run.log_lines(item for item in items if isinstance(item, tuple))
        run.set_tags({key: value for item in items if isinstance(item, dict) for key, value in item.items()})
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
        UserError: `config.uri` or `config.tags` cannot be used.
    """
    return MlflowTracker(config, outputs)
