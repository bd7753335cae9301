"""Metrics of a run: `metrics.jsonl` is the truth, a tracker mirrors it (docs/tracking.md).

`jsonl` writes and reads `metrics.jsonl`; `tracker` is what a run tells a tracker, and `description` says what that is;
`trackers/` holds the trackers, one file each. `trackers/mlflow` never waits: it starts `mlflow_mirror`, the process
that sends a run while it trains. `mlflow_sender` sends what MLflow lacks, for the mirror and for `mlflow_sync`;
`mlflow_run` talks to MLflow and waits for it, `mlflow_record` is what a run directory knows of it, `mlflow_store` finds
the store and its pages, and `mlflow_model` logs a model and registers it. `sweep_run` ends the
parent run of a multirun. `provenance` says where a run comes from; `best` finds the best value of a metric, `units`
converts a loss; `plots`, `plot_lr_find` and `confusion` draw pictures.
"""

from gpt2x.tracking.description import data_source, describe_run
from gpt2x.tracking.jsonl import MetricsLog
from gpt2x.tracking.provenance import run_tags
from gpt2x.tracking.registry import create_tracker
from gpt2x.tracking.tracker import DataInput, RunInfo, Tracker, tracked
from gpt2x.tracking.trackers.none import NoTracker

__all__ = [
    "DataInput",
    "MetricsLog",
    "NoTracker",
    "RunInfo",
    "Tracker",
    "create_tracker",
    "data_source",
    "describe_run",
    "run_tags",
    "tracked",
]
