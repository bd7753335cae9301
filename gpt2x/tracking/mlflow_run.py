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
from typing import TYPE_CHECKING, Any

from gpt2x.errors import UserError
from gpt2x.runtime.json_text import well_formed
from gpt2x.tracking import jsonl
from gpt2x.tracking.description import source_name
from gpt2x.tracking.mlflow_model import is_mlflow_model, log_model
from gpt2x.tracking.mlflow_record import RunRecord, sweep_lock
from gpt2x.tracking.mlflow_store import client_uri, shown, sweep_view
from gpt2x.tracking.parameters import clean_key, distinct_key, tags_for_mlflow
from gpt2x.tracking.sqlite_store import follow_artifacts, store_lock

if TYPE_CHECKING:
    from mlflow.entities import Metric

BATCH_METRICS = 1000  # MLflow's limits for one request
BATCH_PARAMS = 100
MAX_DIGEST_CHARS = 36
EXPERIMENT_KIND = "mlflow.experimentKind"
MODEL_TRAINING = "custom_model_development"  # the pages of an experiment show curves, not traces of applications
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
OF_SWEEP = ("command", "git.", "host", "platform", "version.")  # tags of a job that its parent run has as well
KEPT = (*OF_SWEEP, "processor", "cores", "npu", "layout", "hardware", "data.hash")  # a resumed run keeps both values

BAD_VALUE = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST")
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's answers about a run that it lacks, or to no id


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
            self._client = MlflowClient(tracking_uri=client_uri(record.uri))
            self.experiment_id = self._experiment_id(MlflowException)
        tags = tags_for_mlflow(record.tags) | _mlflow_tags(record.tags) | ({PARENT: parent_id} if parent_id else {})
        start_ms = round(record.start_time_s * 1000)
        run = self._unnoted(start_ms) if record.run_id is None else self._find(MlflowException)
        self.is_resumed = run is not None
        if run is not None and record.run_id is None:
            record.update(run_dir, run_id=run.info.run_id, run_name=run.info.run_name)
        if run is None:
            record.run_name = record.run_name if record.is_name_fixed else self._distinct_name(parent_id)
            try:
                run = self._client.create_run(self.experiment_id, start_ms, tags=tags, run_name=record.run_name)
            except MlflowException as error:
                if error.error_code not in BAD_VALUE:
                    raise
                few = {key: value for key, value in tags.items() if key.startswith("mlflow.")}  # the others follow
                run = self._client.create_run(self.experiment_id, start_ms, tags=few, run_name=record.run_name)
            record.update(run_dir, run_id=run.info.run_id, run_name=record.run_name)
            if record.is_sweep:
                self._client.set_experiment_tag(self.experiment_id, *sweep_view(run.info.run_id))
        self.run_id: str = run.info.run_id
        self.experiment_id = run.info.experiment_id
        if self.is_resumed and not record.has_ended:
            self._client.update_run(self.run_id, status="RUNNING")
        self._stored_params = run.data.params
        self.tags = tags_for_mlflow(record.tags)  # which MLflow has, once `new_tags` are sent
        self.new_tags = _new_tags(tags, run.data.tags)

    @property
    def is_active(self) -> bool:
        """Ask MLflow whether it has this run; False if it was deleted there.

        Raises:
            MlflowException: MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        return self._find(MlflowException) is not None

    def other_running(self, host: str) -> list[tuple[Path, str]]:
        """Return the directory and the id of each other run that MLflow shows as running on a machine of this name."""
        condition = f"attributes.status = 'RUNNING' AND tags.host = '{host}'"
        experiments = [each.experiment_id for each in self._client.search_experiments()]
        return [
            (Path(run.data.tags["run_dir"]), run.info.run_id)
            for run in self._client.search_runs(experiments, condition)
            if run.info.run_id != self.run_id and "run_dir" in run.data.tags
        ]

    def metrics_of(self, lines: Iterable[jsonl.Line]) -> list[Metric]:
        """Return lines as MLflow takes them."""
        from mlflow.entities import Metric

        return [
            Metric(self._name(key), value, round(time_s * 1000), step)
            for step, time_s, values in lines
            for key, value in values.items()
        ]

    def log_metrics(self, metrics: list[Metric]) -> None:
        """Send metrics. MLflow stores a value with the same key, step, time and value only once."""
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

    def missing(self, lines: list[jsonl.Line]) -> tuple[list[Metric], int]:
        """Return the values that MLflow lacks, by name and then by step, and of how many steps it has other values.

        A value that it has at the same step is not sent again, even if the time differs: MLflow would show it twice.
        The first measurement of a step's speed stays.
        """
        by_name = grouped(self.metrics_of(lines))
        result: list[Metric] = []
        changed: set[int] = set()
        for name, metrics in by_name.items():
            stored: dict[int, set[str]] = {}
            for each in self._client.get_metric_history(self.run_id, name):
                stored.setdefault(each.step, set()).add(_stored_value(each.value))
            if name.startswith(jsonl.SPEED):
                result += [metric for metric in metrics if metric.step not in stored]
                continue
            result += [each for each in metrics if _stored_value(each.value) not in stored.get(each.step, set())]
            for each in metrics:
                stored.get(each.step, set()).discard(_stored_value(each.value))
            changed |= {each.step for each in metrics if stored.get(each.step)}
        return result, len(changed)

    def start_system_metrics(self) -> Callable[[], None]:
        """Sample CPU, memory, disk and network in a thread of MLflow; return the function that ends it."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=self.is_resumed, tracking_uri=client_uri(self.record.uri)
        )
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
                self.record.update(self.run_dir, metric_names=self.record.metric_names | {key: name})
        return self._names[key]

    def _unnoted(self, start_ms: int) -> Any:
        """Return the run that a process created which was killed before it noted the id; None if there is none."""
        runs = self._client.search_runs([self.experiment_id], f"attributes.start_time = {start_ms}")
        run_dir = tags_for_mlflow(self.record.tags).get("run_dir")
        same = (run for run in runs if run.info.start_time == start_ms and run.data.tags.get("run_dir") == run_dir)
        return next(same, None)

    def _find(self, mlflow_error: type[Exception]) -> Any:
        """Return the run of the record; None if MLflow does not have it any more, or if it was deleted there."""
        assert self.record.run_id is not None
        try:
            run = self._client.get_run(self.record.run_id)
        except mlflow_error as error:
            if getattr(error, "error_code", "") in GONE:
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

    def log_params(self) -> None:
        """Send the parameters; MLflow cannot change them, so a value that has changed becomes a tag `resumed/<key>`."""
        from mlflow.entities import Param

        params, stored = self.record.params, self._stored_params
        new = [Param(key, value) for key, value in params.items() if key not in stored]
        for batch in _batches(new, BATCH_PARAMS):
            self._client.log_batch(self.run_id, params=batch)
        self.set_tags(_resumed({key: value for key, value in params.items() if stored.get(key, value) != value}))

    def log_inputs(self) -> None:
        """Send the data sets."""
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
        where = f"MLflow ({shown(record.uri)})"
        warn(f"{where} has no run {earlier_id}, or it was deleted there; its values go to a new run")
    return run


def grouped(metrics: Iterable[Metric]) -> dict[str, list[Metric]]:
    """Return metrics by name."""
    by_name: dict[str, list[Metric]] = {}
    for metric in metrics:
        by_name.setdefault(metric.key, []).append(metric)
    return by_name


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


def _new_tags(tags: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """Return the tags to send: a user's note stays, and an origin that has changed becomes a tag `resumed/<key>`."""
    changed = {key: value for key, value in tags.items() if stored.get(key) != value}
    if NOTE in stored:
        changed.pop(NOTE, None)
    kept = {key for key in changed if key.startswith(KEPT) and key in stored}
    return {key: value for key, value in changed.items() if key not in kept} | _resumed(
        {key: changed[key] for key in kept}
    )


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
