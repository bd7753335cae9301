"""MLflow's stores: their addresses, the import of MLflow, and the pages that show a run."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from gpt2x.errors import UserError

UI_PORT = 5000  # of `mlflow ui`
MODEL_TRAINING = "workflowType=machine_learning"  # MLflow's pages are those of language-model applications otherwise


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


def where_to_look(uri: str, experiment_id: str, run_id: str, *, is_sweep: bool = False) -> str:
    """Return one line for a user: the page of a run, and the command that serves it unless a server runs.

    Args:
        uri: the store.
        experiment_id: as MLflow numbers it.
        run_id: likewise.
        is_sweep: the run is the parent of a sweep; the page overlays the curves of its jobs.
    """
    parts = urlsplit(uri)
    page = sweep_page(experiment_id, run_id) if is_sweep else run_page(experiment_id, run_id)
    if parts.scheme in ("http", "https"):
        server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")  # without a password
        return f"MLflow: {server}/{page}"
    if parts.scheme.partition("+")[0] == "databricks":
        return f"MLflow: run {run_id} of experiment {experiment_id} on Databricks"
    store = parts._replace(netloc=parts.netloc.replace(f":{parts.password}@", ":PASSWORD@", 1)).geturl()
    store = uri if parts.password is None else store
    return f"MLflow: http://127.0.0.1:{UI_PORT}/{page} after: mlflow ui --backend-store-uri {shlex.quote(store)}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the part of the address after the server: the curves of one run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}/model-metrics?{MODEL_TRAINING}"


def sweep_page(experiment_id: str, parent_id: str) -> str:
    """Return the part of the address after the server: the curves of a sweep's jobs, overlaid."""
    condition = quote(f"tags.mlflow.parentRunId = '{parent_id}'")
    order = f"orderByKey={quote('tags.`mlflow.runName`')}&orderByAsc=true"  # by time, the parent would hide its jobs
    return f"#/experiments/{experiment_id}/runs?{MODEL_TRAINING}&compareRunsMode=CHART&{order}&searchFilter={condition}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
