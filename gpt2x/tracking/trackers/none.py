"""`tracker=none`: only the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpt2x.config import TrackerConfig
from gpt2x.tracking.tracker import RunInfo


class NoTracker:
    """A tracker that mirrors nothing."""

    def start(self, run: RunInfo) -> None:
        """Do nothing."""

    def log_metrics(self, step: int, time_s: float, metrics: Mapping[str, float]) -> None:
        """Do nothing."""

    def log_artifact(self, path: Path) -> None:
        """Do nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""


def create(config: TrackerConfig, outputs: Path) -> NoTracker:
    """Return a tracker that mirrors nothing."""
    return NoTracker()
