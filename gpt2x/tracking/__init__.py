"""Metrics of a run: `metrics.jsonl` is the truth, a tracker mirrors it (docs/tracking.md)."""

from gpt2x.tracking.jsonl import MetricsLog
from gpt2x.tracking.provenance import run_tags
from gpt2x.tracking.tracker import NoTracker, RunInfo, Tracker, create_tracker

__all__ = ["MetricsLog", "NoTracker", "RunInfo", "Tracker", "create_tracker", "run_tags"]
