"""Trackers of this folder mirror in a thread; `launch` tests have the process."""

import pytest

from tests.support.mirror import MirrorThread


@pytest.fixture(autouse=True)
def mirror_thread(request, monkeypatch):
    """Spare a process per tracker."""
    if request.node.get_closest_marker("launch") is None:
        monkeypatch.setattr("gpt2x.tracking.trackers.mlflow.start_mirror", MirrorThread)
