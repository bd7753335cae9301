"""The tracker that `tracker.name` names."""

from __future__ import annotations

from pathlib import Path

from gpt2x.config import TrackerConfig
from gpt2x.extensions import Extensions
from gpt2x.tracking.tracker import Tracker

TRACKERS = Extensions("gpt2x.tracking.trackers", "create", "tracker")


def create_tracker(config: TrackerConfig, outputs: Path) -> Tracker:
    """Return the tracker of `config.name`; nothing is created or contacted before its `start`.

    Args:
        config: the group `tracker`.
        outputs: `paths.outputs`.

    Raises:
        UserError: there is no such tracker, or its settings cannot be used.
    """
    tracker: Tracker = TRACKERS.load(config.name)(config, outputs)
    return tracker
