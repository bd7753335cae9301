"""A directory that is an MLflow model, logged with its run and registered under a name."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.models import Model
    from mlflow.tracking.client import MlflowClient

MLMODEL = "MLmodel"
REGISTERED = "registered_model"  # key of the model's metadata: the name in the registry
VERSIONS_TAG = "mlflow.modelVersions"  # in which MLflow's pages look for the versions of a logged model


def is_mlflow_model(path: Path) -> bool:
    """Return whether a directory is an MLflow model."""
    return (path / MLMODEL).is_file()


def log_model(client: MlflowClient, run_id: str, path: Path) -> None:
    """Log an MLflow model as the output of a run, and register it if its metadata name a registered model.

    A second call continues a first one that was broken off, and repeats nothing: MLmodel notes the model's id.

    Args:
        client: of the store that has the run.
        run_id: the run that trained the model.
        path: the directory.

    Raises:
        MlflowException: MLflow does not accept it.
    """
    from mlflow.entities import LoggedModelStatus
    from mlflow.models import Model

    model = Model.load(str(path))
    logged = logged_model(client, model, run_id) or create_logged_model(client, run_id, model, path)
    if logged.status != LoggedModelStatus.READY:
        client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    if name := (model.metadata or {}).get(REGISTERED):
        register(client, run_id, logged.model_id, name)


def logged_model(client: MlflowClient, model: Model, run_id: str) -> LoggedModel | None:
    """Return the logged model that MLmodel names; None if it names none of this run that the store has."""
    from mlflow.exceptions import MlflowException

    if model.model_id is not None:
        with contextlib.suppress(MlflowException):
            logged = client.get_logged_model(model.model_id)
            return logged if logged.source_run_id == run_id else None
    return None


def create_logged_model(client: MlflowClient, run_id: str, model: Model, path: Path) -> LoggedModel:
    """Create the entry of a model without its files, linked with the run and its values at the model's step."""
    from mlflow.entities import LoggedModelOutput

    facts = model.metadata or {}
    step = int(facts.get("step", 0))
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=re.sub(r"[/:.%\"']", "_", str(facts.get("model", path.name))),  # what MLflow rejects
        source_run_id=run_id,
        tags={key: str(value) for key, value in facts.items()},
    )
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
    link_values(client, run_id, logged.model_id, step)
    model.model_id = model.model_uuid = logged.model_id
    model.run_id, model.artifact_path = run_id, logged.artifact_location
    model.save(str(path / MLMODEL))
    return logged


def link_values(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Show the run's validation at `step` as the model's; MLflow stores the values themselves only once."""
    from mlflow.entities import Metric

    values = [
        Metric(key, metric.value, metric.timestamp, step, model_id=model_id)
        for key in client.get_run(run_id).data.metrics
        if key.startswith("val/")
        for metric in client.get_metric_history(run_id, key)
        if metric.step == step
    ]
    if values:
        client.log_batch(run_id, metrics=values)


def register(client: MlflowClient, run_id: str, model_id: str, name: str) -> None:
    """Make a logged model the next version of a registered model, unless it is one already."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    logged = client.get_logged_model(model_id)
    versions: list[dict[str, Any]] = json.loads(logged.tags.get(VERSIONS_TAG, "[]"))
    if any(version["name"] == name for version in versions):
        return
    # not models:/ID, which MLflow's SQL registry looks up in the store of MLFLOW_TRACKING_URI, not in the client's
    created = client.create_model_version(name, logged.artifact_location, run_id=run_id, model_id=model_id)
    versions.append({"name": name, "version": created.version})
    client.set_logged_model_tags(model_id, {VERSIONS_TAG: json.dumps(versions)})
