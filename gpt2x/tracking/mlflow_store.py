"""MLflow's stores: their addresses, the import of MLflow, and the pages that show a run."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, urlsplit

from gpt2x.errors import UserError
from gpt2x.tracking.sqlite_store import ARTIFACTS, SCHEME, sqlite_uri, typed_file

UI_PORT = 5000  # of `mlflow ui`
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # MLflow's environment variables
MODEL_TRAINING = "workflowType=machine_learning"  # MLflow's pages are those of language-model applications otherwise


def resolve_uri(uri: str | None, outputs: Path) -> tuple[str, str | None]:
    """Return a tracking URI that means the same from every directory, and the folder of artifacts.

    Args:
        uri: `tracker.uri`; None: sqlite in `outputs`.
        outputs: absolute `paths.outputs`.

    Returns:
        The URI and the artifact folder; the folder is None if the server decides.

    Raises:
        UserError: MLflow has no store of this kind, or the address holds a password.
    """
    if uri is None:
        return sqlite_uri(outputs / "mlflow.db"), str(outputs / ARTIFACTS)
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if shown(uri) != uri:
        variables = f"{USER} and {PASSWORD}" if scheme in ("http", "https") else PASSWORD
        raise UserError(
            f"tracker.uri={shown(uri)} holds a password, which would be written to the files of the run. Leave it out "
            f"of the address, and set {variables} in the environment."
        )
    if (scheme in ("http", "https") and parts.hostname) or uri == "databricks" or scheme == "databricks":
        return uri, None
    if scheme == "sqlite" and uri.startswith(SCHEME) and len(uri) > len(SCHEME):
        file = typed_file(uri)
        return sqlite_uri(file), str(file.parent / ARTIFACTS)
    if scheme in ("postgresql", "mysql", "mssql") and parts.hostname:
        return uri, str(outputs / ARTIFACTS)
    raise UserError(
        f"tracker.uri={shown(uri)!r} is not an MLflow store; give http(s)://HOST:PORT, sqlite:///FILE, postgresql://…, "
        "mysql://…, or null for a sqlite file in paths.outputs."
    )


def shown(uri: str) -> str:
    """Return an address as it may be printed: a password in it is replaced by PASSWORD.

    Of a server, the user may be a token and is replaced as well.
    """
    parts = urlsplit(uri)
    user, _, host = parts.netloc.rpartition("@")
    if parts.scheme in ("http", "https"):
        user = user and "USER:PASSWORD"
    elif ":" in user:
        user = f"{user.partition(':')[0]}:PASSWORD"
    query = re.sub(r"(?i)(password|passwd|pwd|token)=[^&]*", r"\1=PASSWORD", parts.query)
    if (user == parts.netloc.rpartition("@")[0]) and query == parts.query:
        return uri
    return parts._replace(netloc=f"{user}@{host}" if user else host, query=query).geturl()


def client_uri(uri: str) -> str:
    """Return the address by which MLflow opens a store: the password of a database is that of the environment.

    MLflow itself reads the user and the password of a server there.
    """
    parts, password = urlsplit(uri), os.environ.get(PASSWORD)
    user, _, host = parts.netloc.rpartition("@")
    if not password or not user or ":" in user or parts.scheme in ("http", "https"):
        return uri
    return parts._replace(netloc=f"{user}:{quote(password, safe='')}@{host}").geturl()


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


def where_to_look(uri: str, page: str) -> str:
    """Return one line for a user: the address of a page, and the command that serves it unless a server runs.

    Args:
        uri: the store.
        page: what `curves_page`, `run_page` or `sweep_page` returns.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        server = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")  # without a user
        return f"MLflow: {server}/{page}"
    if parts.scheme.partition("+")[0] == "databricks":
        return f"MLflow: on Databricks, {page}"
    command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {shlex.quote(shown(uri))}"
    return f"MLflow: http://127.0.0.1:{UI_PORT}/{page} after: {command}"


def curves_page(experiment_id: str, run_id: str, metrics: Sequence[str]) -> str:
    """Return the part of the address after the server: some metrics of a run over steps, in one picture."""
    values = {"runs": [run_id], "experiments": [experiment_id], "metric": metrics[0], "plot_metric_keys": [*metrics]}
    query = "&".join(f"{key}={quote(json.dumps(value, separators=(',', ':')))}" for key, value in values.items())
    return f"#/metric?{query}&x_axis=step&{MODEL_TRAINING}"


def run_page(experiment_id: str, run_id: str) -> str:
    """Return the part of the address after the server: everything about one run."""
    return f"#/experiments/{experiment_id}/runs/{run_id}?{MODEL_TRAINING}"


def sweep_page(experiment_id: str, parent_id: str) -> str:
    """Return the part of the address after the server: the losses of a sweep's jobs, overlaid; see `sweep_view`."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={parent_id}&{MODEL_TRAINING}&compareRunsMode=CHART"


def sweep_view(parent_id: str) -> tuple[str, str]:
    """Return a tag of the experiment, by which `sweep_page` knows its jobs: what MLflow's button *Share* stores."""
    state = {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}'",
        "orderByKey": "tags.`mlflow.runName`",  # by time, jobs would be hidden below their parent
        "orderByAsc": True,
        "chartsSearchFilter": "loss",  # charts are sorted by name, and `perf` would come first
    }
    return f"mlflow.sharedViewState.{parent_id}", json.dumps(state)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a password."""
    text = str(error).strip() or type(error).__name__
    return re.sub(r"(?<=://)[^/@\s]+@", "USER:PASSWORD@", text.splitlines()[0])[:300]
