"""A wall clock that is put back while a run trains: each step is there once, and no run ends before it began."""

import time

import pytest

from gpt2x.tracking import MetricsLog, jsonl, mlflow_sync
from gpt2x.tracking.mlflow_record import RunRecord

HOUR_S = 3600.0


@pytest.fixture
def clock(monkeypatch):
    """Return what puts the clock to an hour."""
    now = time.time()

    def put(hours):
        monkeypatch.setattr(time, "time", lambda: now + HOUR_S * hours)

    put(0)
    return put


@pytest.mark.parametrize("hours", [-7, 7])
def test_a_log_has_each_step_once_and_a_run_ends_after_its_start(tmp_path, monkeypatch, clock, hours):
    monkeypatch.setattr(mlflow_sync, "_send", lambda run_dir, wait_s: None)
    record = RunRecord("sqlite:///x.db", None, "e", "r", start_time_s=time.time())
    record.save(tmp_path)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step, at in enumerate((0, hours, hours, 0), 1):
        clock(at)
        log.append(step, {"train/loss": float(step)})
    log.close()
    assert [row["step"] for row in jsonl.read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    clock(hours)
    mlflow_sync.end_abandoned(tmp_path, "KILLED")
    ended = RunRecord.load(tmp_path)
    assert ended.end_time_s == record.start_time_s + max(0.0, HOUR_S * hours)
    mlflow_sync.close_killed(record, tmp_path)
    assert RunRecord.load(tmp_path).end_time_s >= record.start_time_s
