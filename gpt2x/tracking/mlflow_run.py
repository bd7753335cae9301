"""The part that talks to MLflow and waits for it: stores, runs, and `sync`."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gpt2x.errors import UserError
from gpt2x.runtime.console import stderr
from gpt2x.tracking import jsonl
from gpt2x.tracking.mlflow_model import is_mlflow_model, log_model
from gpt2x.tracking.parameters import clean_key
from gpt2x.tracking.tracker import STATUSES

RECORD_NAME = "mlflow_run.json"
BATCH_METRICS = 1000  # MLflow's limits for one request
BATCH_PARAMS = 100

_saving = threading.Lock()  # the trainer's thread and the mirror both save the record

Line = tuple[int, float, dict[str, float]]  # step, time (unix seconds), metrics


@dataclass
class RunRecord:
    """`mlflow_run.json` in the run directory: what `resume` and `sync` need to find or create the MLflow run."""

    uri: str
    artifact_root: str | None
    experiment: str
    run_name: str
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    start_time_s: float = 0.0  # unix seconds
    run_id: str | None = None  # None: MLflow has not answered yet
    artifacts: list[str] = field(default_factory=list)  # relative to the run directory if they are in it
    status: str = "RUNNING"

    @classmethod
    def load(cls, run_dir: Path) -> RunRecord | None:
        """Return the record of a run directory, or None.

        Raises:
            UserError: the file is damaged.
        """
        path = run_dir / RECORD_NAME
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete it to start a new MLflow run.") from error

    def save(self, run_dir: Path) -> None:
        """Replace the file atomically."""
        run_dir.mkdir(parents=True, exist_ok=True)
        part = run_dir / f"{RECORD_NAME}.part"
        with _saving:
            part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, run_dir / RECORD_NAME)


class MlflowRun:
    """One MLflow run; every method waits for MLflow and passes on its exceptions."""

    def __init__(self, record: RunRecord, run_dir: Path) -> None:
        """Connect, and find or create the run; then `record.run_id` is set and saved."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.client import MlflowClient

        self.record, self.run_dir = record, run_dir
        with store_lock(record.uri):
            self._client = MlflowClient(tracking_uri=record.uri)
            experiment_id = self._experiment_id(MlflowException)
        run = None
        if record.run_id is not None:
            with contextlib.suppress(MlflowException):
                run = self._client.get_run(record.run_id)
        self.is_resumed = run is not None
        if run is None:
            tags = record.tags | _mlflow_tags(record.tags)
            start_ms = round(record.start_time_s * 1000)
            run = self._client.create_run(experiment_id, start_ms, tags=tags, run_name=record.run_name)
            record.run_id = run.info.run_id
            record.save(run_dir)
        self.run_id: str = run.info.run_id
        if self.is_resumed:
            self._client.update_run(self.run_id, status="RUNNING")
        self._log_params(run.data.params)

    def log_lines(self, lines: Iterable[Line]) -> None:
        """Send metrics. MLflow stores a value with the same key, step, time and value only once."""
        from mlflow.entities import Metric

        metrics = [
            Metric(clean_key(key), value, round(time_s * 1000), step)
            for step, time_s, values in lines
            for key, value in values.items()
        ]
        for batch in _batches(metrics, BATCH_METRICS):
            self._client.log_batch(self.run_id, metrics=batch)

    def log_artifact(self, path: Path) -> None:
        """Send a file, or a directory under its name; an MLflow model becomes the run's output."""
        if is_mlflow_model(path):
            log_model(self._client, self.run_id, path)
        elif path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), artifact_path=path.name)
        else:
            self._client.log_artifact(self.run_id, str(path))

    def missing(self, lines: Iterable[Line]) -> list[Line]:
        """Return the lines that MLflow lacks, each with the values that it lacks."""
        stored: dict[str, set[tuple[int, int, str]]] = {}
        result = []
        for step, time_s, values in lines:
            absent = {}
            for key, value in values.items():
                name = clean_key(key)
                if name not in stored:
                    history = self._client.get_metric_history(self.run_id, name)
                    stored[name] = {(m.step, m.timestamp, _stored_value(m.value)) for m in history}
                if (step, round(time_s * 1000), _stored_value(value)) not in stored[name]:
                    absent[key] = value
            if absent:
                result.append((step, time_s, absent))
        return result

    def start_system_metrics(self) -> Callable[[], None]:
        """Sample CPU, memory, disk and network in a thread of MLflow; return the function that ends it."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(self.run_id, resume_logging=self.is_resumed, tracking_uri=self.record.uri)
        monitor.start()
        return monitor.finish

    def terminate(self, status: str) -> None:
        """Close the run."""
        self._client.set_terminated(self.run_id, status)

    def _experiment_id(self, mlflow_error: type[Exception]) -> str:
        name = self.record.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self._client.create_experiment(name, self._artifact_location())
            except mlflow_error:  # somebody else was faster
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:
                    raise
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def _artifact_location(self) -> str | None:
        root = self.record.artifact_root
        return None if root is None else (Path(root) / clean_key(self.record.experiment)).as_uri()

    def _log_params(self, stored: Mapping[str, str]) -> None:
        """Send the parameters; MLflow cannot change them, so a value that has changed becomes a tag `resumed/<key>`."""
        from mlflow.entities import Param, RunTag

        new = [Param(key, value) for key, value in self.record.params.items() if key not in stored]
        for batch in _batches(new, BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=batch)
        changed = [
            RunTag(f"resumed/{key}"[:250], value)
            for key, value in self.record.params.items()
            if stored.get(key, value) != value
        ]
        for batch in _batches(changed, BATCH_PARAMS):
            self._client.log_batch(self.run_id, tags=batch)


def sync(run_dir: Path) -> int:
    """Send what `metrics.jsonl` has and MLflow lacks, then the artifacts and the status.

    Args:
        run_dir: a run directory with `mlflow_run.json`.

    Returns:
        The number of values sent; a second call sends none.

    Raises:
        UserError: the directory has no tracked run, or MLflow does not answer.
    """
    run_dir = Path(run_dir)
    record = RunRecord.load(run_dir)
    if record is None:
        raise UserError(f"{run_dir} has no {RECORD_NAME}; give the directory of a run with tracker=mlflow.")
    metrics_path = run_dir / "metrics.jsonl"
    rows = jsonl.read(metrics_path) if metrics_path.exists() else []
    import_mlflow()
    try:
        run = MlflowRun(record, run_dir)
        missing = run.missing((row.pop("step"), row.pop("time"), row) for row in rows)
        run.log_lines(missing)
        for name in record.artifacts:
            if (run_dir / name).exists():
                run.log_artifact(run_dir / name)
        if record.status in STATUSES:
            run.terminate(record.status)
    except Exception as error:
        raise UserError(f"MLflow ({record.uri}) does not accept the run: {first_line(error)}") from error
    return sum(len(values) for _, _, values in missing)


def end_abandoned(run_dir: Path, status: str, wait_s: float = 8.0) -> None:
    """Close the run of a process that could not, and send what is missing; do nothing if the run is closed.

    Args:
        run_dir: the run directory.
        status: FAILED or KILLED.
        wait_s: seconds that MLflow may take; after that a warning names the command that sends the rest.
    """
    record = RunRecord.load(run_dir)
    if record is None or record.status in STATUSES:
        return
    record.status = status
    record.save(run_dir)
    command = [sys.executable, "-m", "gpt2x", "sync", str(run_dir)]
    try:  # in a process, because a process can be ended
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait_s, check=False)
        failure = done.stderr.strip().removeprefix("error: ") if done.returncode else None
    except subprocess.TimeoutExpired:
        failure = f"no answer in {wait_s:g} s"
    if failure is not None:
        stderr.warn(f"MLflow may show the run as RUNNING ({failure}); later: gpt2x sync {run_dir}")


def resolve_uri(uri: str | None, outputs: Path) -> tuple[str, str | None]:
    """Return a tracking URI that means the same from every directory, and the folder of artifacts.

    Args:
        uri: `tracker.uri`; None: sqlite in `outputs`.
        outputs: absolute `paths.outputs`.

    Returns:
        The URI and the artifact folder; the folder is None if the server decides.

    Raises:
        UserError: MLflow has no store of this kind.
    """
    if uri is None:
        return f"sqlite:///{outputs / 'mlflow.db'}", str(outputs / "mlartifacts")
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if (scheme in ("http", "https") and parts.hostname) or uri == "databricks" or scheme == "databricks":
        return uri, None
    if scheme == "sqlite" and uri.startswith("sqlite:///") and len(uri) > len("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        return f"sqlite:///{path}", str(path.parent / "mlartifacts")
    if scheme in ("postgresql", "mysql", "mssql") and parts.hostname:
        return uri, str(outputs / "mlartifacts")
    raise UserError(
        f"tracker.uri={uri!r} is not an MLflow store; give http(s)://HOST:PORT, sqlite:///FILE, postgresql://…, "
        "mysql://…, or null for a sqlite file in paths.outputs."
    )


def require_mlflow() -> None:
    """Raise UserError if MLflow is not installed, without importing it (1 to 2 s)."""
    if sys.modules.get("mlflow") is None and find_spec("mlflow") is None:
        raise UserError("tracker=mlflow: MLflow is not installed; pip install mlflow, or use tracker=none.")


def import_mlflow() -> None:
    """Import MLflow without telemetry and log lines; its requests give up within seconds.

    Raises:
        UserError: it cannot be imported.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        import mlflow.tracking.client  # noqa: F401
    except Exception as error:
        raise UserError(
            f"tracker=mlflow: MLflow cannot be imported ({first_line(error)}); use tracker=none."
        ) from error
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextlib.contextmanager
def store_lock(uri: str) -> Iterator[None]:
    """Let one process at a time create or open a sqlite store; most concurrent first users fail otherwise."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///") + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mlflow_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow's pages show as columns."""
    result = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container may have no such user
        result["mlflow.user"] = getpass.getuser()
    if "git.sha" in tags:
        result["mlflow.source.git.commit"] = tags["git.sha"]
    return result


def _stored_value(value: float) -> str:
    """Return a value as SQL stores keep it: infinities become the largest double."""
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return repr(float(value))


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
