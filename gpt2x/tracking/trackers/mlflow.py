"""A mirror of the run directory in MLflow.

`MlflowTracker` notes in `mlflow_run.json` what MLflow shall show, and starts the process that sends it:
`gpt2x.tracking.mlflow_mirror`. It waits for nothing. What MLflow misses (a dead server, a killed process) is in
`metrics.jsonl` and in the record, and a resumed run, or `gpt2x sync`, sends it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol
from uuid import uuid4

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.tracking.mlflow_record import RunRecord, hold_live
from gpt2x.tracking.mlflow_run import NOTE
from gpt2x.tracking.mlflow_store import (
    curves_page,
    require_mlflow,
    resolve_uri,
    run_page,
    shown,
    sweep_page,
    where_to_look,
)
from gpt2x.tracking.mlflow_sync import reasons
from gpt2x.tracking.parameters import checked_tags, shortened_for_mlflow, tags_for_mlflow
from gpt2x.tracking.tracker import RunInfo, require_status

FINISH_WAIT_S = 15.0
IMPORT_WAIT_S = 60.0  # the import only reads files
FIRST_LINE_WAIT_S = 60.0  # a run whose first step takes longer is shown before it
STARTS = 3  # of a mirror that ends by itself
RESTART_S = 15.0
LOSSES = ("train/loss", "val/loss")  # the page that is printed shows them
PACKAGES = Path(__file__).resolve().parents[3]  # the folder of gpt2x, for `python -m`


class Child(Protocol):
    """The process of a mirror."""

    @property
    def stdin(self) -> IO[str] | None:
        """Closed when the run has ended."""

    @property
    def stdout(self) -> IO[str] | None:
        """Its messages."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> int:
        """Wait for its end."""


def start_mirror(run_dir: Path, session: str) -> Child:
    """Start the process that mirrors a directory, beyond the signals of this one's terminal."""
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "gpt2x.tracking.mlflow_mirror", str(run_dir.absolute()), session],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,
    )


class MlflowTracker:
    """`tracker=mlflow`. Only `finish` takes time: at most 15 s once the mirror has imported MLflow."""

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
        self._thread: threading.Thread | None = None  # reads the messages of the mirror
        self._mirror: Child | None = None
        self._live: IO[str] | None = None
        self._ids: tuple[str, str] | None = None  # of experiment and run, once MLflow has answered
        self._left: dict[str, str] | None = None  # what MLflow lacks in the end; None: the mirror did not come so far
        self._curves: dict[str, None] = {}  # metrics of LOSSES that the run has
        self._closing = threading.Event()
        self._has_begun, self._is_ready = threading.Event(), threading.Event()
        self._has_failed = False  # to write the record

    @property
    def uri(self) -> str:
        """The resolved tracking URI, as `mlflow ui --backend-store-uri` accepts it."""
        return self._uri

    def start(self, run: RunInfo) -> None:
        """Note the run; the mirror starts after the first line of metrics, since a start needs the processor.

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
            system_metrics=self._config.system_metrics,
            session=uuid4().hex,
            sweep_name=run.sweep_name,
            is_sweep=run.is_sweep,
        )
        self._record.save(self._run_dir)
        self._live = hold_live(self._run_dir)
        require_mlflow()
        self._thread = threading.Thread(target=self._watch, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Do nothing after the first line: the mirror reads `metrics.jsonl`."""
        self._has_begun.set()
        self._curves |= dict.fromkeys(key for key in LOSSES if key in metrics)

    def log_artifact(self, path: Path) -> None:
        """Note a file or a directory; it is read when it is sent."""
        path = Path(path).absolute()
        base = self._run_dir.absolute()
        name = str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
        if name not in self._record.artifacts:
            self._note(artifacts=[*self._record.artifacts, name])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Note tags."""
        self._note(tags=self._record.tags | tags_for_mlflow(tags))

    def finish(self, status: str) -> None:
        """Close the run, after at most 15 s for what is left, and print its page; a second call does nothing.

        An interrupt (Ctrl-C) ends the wait at once.

        Raises:
            ValueError: the status is not FINISHED, FAILED or KILLED.
        """
        require_status(status)
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        self._note(status=status, end_time_s=self._record.end_at(time.time()))
        try:
            self._closing.set()
            self._has_begun.set()
            self._is_ready.wait(IMPORT_WAIT_S)
            thread.join(FINISH_WAIT_S)
        finally:
            if self._mirror is not None:
                self._mirror.kill()
            if self._live is not None:
                self._live.close()
            self._say_end()

    def _say_end(self) -> None:
        if self._left or self._left is None:
            why = f" ({reasons(self._left)})" if self._left else ""
            self._warn(
                f"MLflow ({shown(self._uri)}) lacks a part of this run{why}, which metrics.jsonl has. Send it later: "
                f"gpt2x sync {shlex.quote(str(self._run_dir))}"
            )
        elif self._record.sweep_dir is None and self._ids is not None:  # the page of a sweep shows its jobs
            console.notice(where_to_look(self._uri, self._page(*self._ids)))

    def _page(self, experiment_id: str, run_id: str) -> str:
        if self._record.is_sweep:
            return sweep_page(experiment_id, run_id)
        if self._curves:
            return curves_page(experiment_id, run_id, list(self._curves))
        return run_page(experiment_id, run_id)

    def _note(self, **values: object) -> None:
        """Change the record; a disk that is full does not end the run."""
        try:
            self._record.update(self._run_dir, **values)
        except (OSError, UserError) as error:
            if not self._has_failed:
                self._warn(f"mlflow_run.json cannot be written, so that MLflow may lack a part of this run: {error}")
            self._has_failed = True

    # ---- in the thread

    def _watch(self) -> None:
        """Start the mirror and pass on what it says; start it again if it ends by itself."""
        self._has_begun.wait(FIRST_LINE_WAIT_S)
        for _ in range(STARTS):
            try:
                self._mirror = start_mirror(self._run_dir, self._record.session)
            except OSError as error:  # no memory, or too many processes
                self._warn(f"the mirror of MLflow cannot be started: {error}")
                break
            closing = threading.Thread(target=self._close, args=[self._mirror], daemon=True)
            closing.start()
            assert self._mirror.stdout is not None
            for line in self._mirror.stdout:
                self._hear(json.loads(line))
            self._mirror.wait()
            if self._left is not None or self._closing.wait(RESTART_S):
                break
        self._is_ready.set()

    def _close(self, mirror: Child) -> None:
        """Tell the mirror that the run has ended."""
        self._closing.wait()
        assert mirror.stdin is not None
        mirror.stdin.close()

    def _hear(self, message: dict[str, Any]) -> None:
        for key, value in message.items():
            match key:
                case "ready":
                    self._is_ready.set()
                case "warning":
                    self._warn(value)
                case "run":
                    self._ids = value[0], value[1]
                case "left":
                    self._left = value


def create(config: TrackerConfig, outputs: Path) -> MlflowTracker:
    """Return the mirror in MLflow.

    Raises:
        UserError: `config.uri` or `config.tags` cannot be used.
    """
    return MlflowTracker(config, outputs)
