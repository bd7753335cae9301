"""What a run tells a tracker, and the tracker that says nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError

MAX_KEY_CHARS = 250  # MLflow's limit
MAX_VALUE_CHARS = 500  # of MLflow servers before 2.10; later ones take 6000
STATUSES = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class RunInfo:
    """A run as it is shown in a tracker.

    Attributes:
        experiment: the group of runs, by default the task's name.
        run_name: by default `model/dataset`.
        params: the resolved configuration, nested.
        tags: provenance, see `gpt2x.tracking.provenance.run_tags`.
        run_dir: where `metrics.jsonl` is.
        resume_id: the tracker's own id of a run to continue; null: the one noted in `run_dir`, else a new run.
    """

    experiment: str
    run_name: str
    run_dir: Path
    params: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    resume_id: str | None = None


class Tracker(Protocol):
    """A mirror of a run. No method waits for a network, and none fails because a server does."""

    def start(self, run: RunInfo) -> None:
        """Opens the run."""

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Mirrors one line of `metrics.jsonl`; `time_s` is the line's own time (unix seconds)."""

    def log_artifact(self, path: Path) -> None:
        """Mirrors a file or directory."""

    def finish(self, status: str) -> None:
        """Closes the run as FINISHED, FAILED or KILLED; waits a bounded time for what is still on its way."""


class NoTracker:
    """`tracker=none`: the run directory alone."""

    def start(self, run: RunInfo) -> None:
        """Does nothing."""

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def log_artifact(self, path: Path) -> None:
        """Does nothing."""

    def finish(self, status: str) -> None:
        """Does nothing."""


def create_tracker(config: TrackerConfig, outputs: Path) -> Tracker:
    """The tracker of `config.name`.

    Raises:
        UserError: the name or `tracker.uri` is not known.
    """
    if config.name == "none":
        return NoTracker()
    if config.name == "mlflow":
        from gpt2x.tracking.mlflow_tracker import MlflowTracker

        return MlflowTracker(config, outputs)
    raise UserError(f"tracker.name={config.name!r} is not known; choose mlflow or none")


def flatten(params: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration as dotted keys and short text, within MLflow's limits.

    Values are spelled as in YAML and on the command line (`null`, `true`, `0.0001`, `["a", "b"]`). What is too long
    is cut and ends in an ellipsis; the whole configuration is in `config.yaml`.
    """
    flat: dict[str, str] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, child in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), child)
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[_cut(clean_key(prefix), MAX_KEY_CHARS)] = _cut(text, MAX_VALUE_CHARS)

    for key, value in params.items():
        visit(str(key), value)
    return flat


def clean_key(key: str) -> str:
    """`key` with the characters that MLflow refuses replaced by `_`."""
    return re.sub(r"[^\w\-. :/]", "_", key)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
