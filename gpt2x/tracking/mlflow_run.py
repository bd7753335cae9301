"""A run of MLflow, and the parent run of a sweep. Everything here waits for MLflow, and passes on its exceptions."""

from __future__ import annotations

import contextlib
import getpass
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2x.errors import UserError
from gpt2x.runtime.json_text import well_formed
from gpt2x.tracking import jsonl
from gpt2x.tracking.description import source_name
from gpt2x.tracking.mlflow_model import is_mlflow_model, log_model
from gpt2x.tracking.mlflow_record import RunRecord, sweep_lock
from gpt2x.tracking.mlflow_store import sweep_view
from gpt2x.tracking.parameters import clean_key, distinct_key, tags_for_mlflow
from gpt2x.tracking.sqlite_store import follow_artifacts, store_lock

BATCH_METRICS = 1000  # MLflow's limits for one request
BATCH_PARAMS = 100
MAX_DIGEST_CHARS = 36
EXPERIMENT_KIND = "mlflow.experimentKind"
MODEL_TRAINING = "custom_model_development"  # the pages of an experiment show curves, not traces of applications
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
OF_SWEEP = ("command", "git.", "host", "platform", "version.")  # tags of a job that its parent run has as well
KEPT = (*OF_SWEEP, "processor", "cores", "npu", "layout", "hardware", "data.hash")  # a resumed run keeps both values

Line = tuple[int, float, dict[str, float]]  # step, time (unix seconds), metrics


class MlflowRun:
    """One MLflow run."""

    def __init__(self, record: RunRecord, run_dir: Path, parent_id: str | None = None) -> None:
        """Connect, and find or create the run; then `record.run_id` is set and saved.

        Args:
            record: what the run directory knows.
            run_dir: the run directory.
            parent_id: of the run below which MLflow shows it.
        """
        from mlflow.exceptions import MlflowException
        from mlflow.tracking.client import MlflowClient

        self.record, self.run_dir = record, run_dir
        self._names = dict(record.metric_names)  # of metrics in MLflow, by key
        with store_lock(record.uri):
            self._client = MlflowClient(tracking_uri=record.uri)
            self.experiment_id = self._experiment_id(MlflowException)
        tags = tags_for_mlflow(record.tags) | _mlflow_tags(record.tags) | ({PARENT: parent_id} if parent_id else {})
        run = self._find(MlflowException)
        self.is_resumed = run is not None
        if run is None:
            record.run_name = record.run_name if record.is_name_fixed else self._distinct_name(parent_id)
            start_ms = round(record.start_time_s * 1000)
            run = self._client.create_run(self.experiment_id, start_ms, tags=tags, run_name=record.run_name)
            record.run_id = run.info.run_id
            record.save(run_dir)
            if record.is_sweep:
                self._client.set_experiment_tag(self.experiment_id, *sweep_view(run.info.run_id))
        self.run_id: str = run.info.run_id
        self.experiment_id = run.info.experiment_id
        if self.is_resumed:
            if not record.has_ended:
                self._client.update_run(self.run_id, status="RUNNING")
            self._log_tags(tags, run.data.tags)
        self._log_params(run.data.params)
        if record.inputs:
            self._log_inputs()

    def log_lines(self, lines: Iterable[Line]) -> None:
        """Send metrics. MLflow stores a value with the same key, step, time and value only once."""
        from mlflow.entities import Metric

        metrics = [
            Metric(self._name(key), value, round(time_s * 1000), step)
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

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, in place of earlier values."""
        from mlflow.entities import RunTag

        items = [RunTag(key, value) for key, value in tags_for_mlflow(tags).items()]
        for batch in _batches(items, BATCH_PARAMS):
            self._client.log_batch(self.run_id, tags=batch)

    def missing(self, lines: Iterable[Line]) -> list[Line]:
        """Return the lines that MLflow lacks, each with the values that it lacks."""
        stored: dict[str, set[tuple[int, int, str]]] = {}
        result = []
        for step, time_s, values in lines:
            absent = {}
            for key, value in values.items():
                name = self._name(key)
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

    def terminate(self) -> None:
        """Close the run with the record's status and time."""
        end_ms = round(self.record.end_time_s * 1000) or None
        self._client.set_terminated(self.run_id, self.record.status, end_ms)

    def _name(self, key: str) -> str:
        """Return the name of a metric in MLflow; keys that MLflow's characters make equal get numbers.

        A later process takes the same names, whatever the order in which it sees the keys.
        """
        if key not in self._names:
            name = self._names[key] = distinct_key(clean_key(key), set(self._names.values()))
            if name != key:
                self.record.metric_names[key] = name
                self.record.save(self.run_dir)
        return self._names[key]

    def _find(self, mlflow_error: type[Exception]) -> Any:
        """Return the run of the record; None if MLflow does not have it any more, or if it was deleted there."""
        if self.record.run_id is None:
            return None
        try:
            run = self._client.get_run(self.record.run_id)
        except mlflow_error as error:
            if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # or no id
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _experiment_id(self, mlflow_error: type[Exception]) -> str:
        name = self.record.experiment
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            with contextlib.suppress(mlflow_error):  # somebody else was faster
                location = self._artifact_location()
                return self._client.create_experiment(name, location, tags={EXPERIMENT_KIND: MODEL_TRAINING})
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:  # the reason
                return self._client.create_experiment(name, self._artifact_location())
        if location := self._artifact_location():
            follow_artifacts(self.record.uri, experiment.artifact_location, location)
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        if EXPERIMENT_KIND not in experiment.tags:
            self._client.set_experiment_tag(experiment.experiment_id, EXPERIMENT_KIND, MODEL_TRAINING)
        return experiment.experiment_id

    def _artifact_location(self) -> str | None:
        root = self.record.artifact_root
        return None if root is None else (Path(root) / clean_key(self.record.experiment)).as_uri()

    def _distinct_name(self, parent_id: str | None) -> str:
        """Return the record's name, with a number if a run beside this one has the same."""
        name = self.record.run_name
        quote = '"' if "'" in name else "'"
        if quote in name:
            return name
        condition = f"attributes.run_name LIKE {quote}{name}%{quote}"
        condition += f" AND tags.`{PARENT}` = '{parent_id}'" if parent_id else ""
        names = {run.info.run_name for run in self._client.search_runs([self.experiment_id], condition)}
        numbered = (f"{name} ({number})" for number in range(2, len(names) + 3))
        return name if name not in names else next(each for each in numbered if each not in names)

    def _log_params(self, stored: Mapping[str, str]) -> None:
        """Send the parameters; MLflow cannot change them, so a value that has changed becomes a tag `resumed/<key>`."""
        from mlflow.entities import Param

        params = self.record.params
        new = [Param(key, value) for key, value in params.items() if key not in stored]
        for batch in _batches(new, BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=batch)
        self.set_tags(_resumed({key: value for key, value in params.items() if stored.get(key, value) != value}))

    def _log_tags(self, tags: Mapping[str, str], stored: Mapping[str, str]) -> None:
        """Send the tags of a resumed run: a user's note stays, and what has changed becomes a tag `resumed/<key>`."""
        changed = {key: value for key, value in tags.items() if stored.get(key) != value}
        if NOTE in stored:
            changed.pop(NOTE, None)
        kept = {key for key in changed if key.startswith(KEPT) and key in stored}
        self.set_tags(
            {key: value for key, value in changed.items() if key not in kept}
            | _resumed({key: changed[key] for key in kept})
        )

    def _log_inputs(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for each in self.record.inputs:
            profile = {key: each[key] for key in ("num_rows", "num_tokens") if key in each}
            dataset = Dataset(
                name=well_formed(str(each["name"]))[:500] or "_",
                digest=str(each["digest"])[:MAX_DIGEST_CHARS],
                source_type="local",
                source=json.dumps({"uri": each["source"]}),
                profile=json.dumps(profile),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", str(each["context"]))]))
        self._client.log_inputs(self.run_id, inputs)


def open_run(record: RunRecord, run_dir: Path, warn: Callable[[str], None], *, is_live: bool) -> MlflowRun:
    """Find or create the run of a directory and, of a job, the parent run of its sweep.

    Args:
        record: what the directory knows; `run_id` is set and saved.
        run_dir: the run directory.
        warn: called if the job has to do without its parent, and if MLflow does not have the run any more.
        is_live: the job is running now, so that a parent that has ended runs again.
    """
    parent_id = None
    try:
        parent_id = _parent_id(record, run_dir, is_live)
    except (OSError, UserError) as error:
        warn(f"the run of {run_dir} has no parent in MLflow: {error}")
    earlier_id = record.run_id
    run = MlflowRun(record, run_dir, parent_id)
    if earlier_id not in (None, run.run_id):
        warn(f"MLflow ({record.uri}) has no run {earlier_id}, or it was deleted there; its values go to a new run")
    return run


def lines_of(run_dir: Path) -> list[Line]:
    """Return the lines of a run's metrics.jsonl.

    Raises:
        OSError, ValueError: the file cannot be read, or is damaged.
    """
    path = run_dir / "metrics.jsonl"
    rows = jsonl.read(path) if path.exists() else []
    return [(row.pop("step"), row.pop("time"), row) for row in rows]


def _parent_id(record: RunRecord, run_dir: Path, is_live: bool) -> str | None:
    """Return the id of the parent run, which the first of parallel jobs creates; None if there is none.

    Raises:
        OSError: the directory of the sweep cannot be written to.
        UserError: its record is damaged.
    """
    sweep_dir = Path(os.path.normpath(run_dir / record.sweep_dir)) if record.sweep_dir else None
    if sweep_dir is None or not sweep_dir.is_dir():  # the run directory was copied elsewhere
        return None
    with sweep_lock(sweep_dir):
        parent = RunRecord.load(sweep_dir) or RunRecord(
            record.uri,
            record.artifact_root,
            record.experiment,
            record.sweep_name,
            tags={key: value for key, value in record.tags.items() if key.startswith(OF_SWEEP)}
            | {"run_dir": str(sweep_dir)},
            start_time_s=record.start_time_s,
            is_sweep=True,
        )
        if parent.uri != record.uri:
            return None
        if is_live and parent.has_ended:
            parent.status, parent.end_time_s = "RUNNING", 0.0
        parent.save(sweep_dir)
        return MlflowRun(parent, sweep_dir).run_id


def _mlflow_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow's pages show as columns."""
    command = tags.get("command")
    name = source_name(command) if command else Path(sys.argv[0]).name
    result = {"mlflow.source.name": name or "python", "mlflow.source.type": "LOCAL"}
    with contextlib.suppress(OSError, KeyError):  # a container may have no such user
        result["mlflow.user"] = getpass.getuser()
    if "git.sha" in tags:
        result["mlflow.source.git.commit"] = tags["git.sha"]
    return result


def _resumed(values: Mapping[str, str]) -> dict[str, str]:
    return {f"resumed/{key}": value for key, value in values.items()}


def _stored_value(value: float) -> str:
    """Return a value as SQL stores keep it: infinities become the largest double."""
    if math.isinf(value):
        value = math.copysign(sys.float_info.max, value)
    return repr(float(value))


def _batches(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
