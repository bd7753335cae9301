"""Metrics of a run: `metrics.jsonl` is the truth, a tracker mirrors it (docs/tracking.md).

`jsonl` writes and reads `metrics.jsonl`; `tracker` is what a run tells a tracker; `trackers/` holds the trackers, one
file each. `mlflow_run` talks to MLflow and waits for it, `trackers/mlflow` is the mirror that never waits.
`mlflow_model` logs a model and registers it. `provenance` says where a run comes from; `best` finds the best value of
a metric; `plots` and `confusion` draw pictures.
"""

from gpt2x.tracking.jsonl import MetricsLog
from gpt2x.tracking.provenance import run_tags
from gpt2x.tracking.registry import create_tracker
from gpt2x.tracking.tracker import RunInfo, Tracker, tracked
from gpt2x.tracking.trackers.none import NoTracker

__all__ = ["MetricsLog", "NoTracker", "RunInfo", "Tracker", "create_tracker", "run_tags", "tracked"]
