"""A server of MLflow that fails in each way: what arrives in the end, each step once. Long form: faults/outages.py."""

import json
import math
import threading
import time

import pytest

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import MetricsLog, RunInfo, jsonl
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_sync import sync
from gpt2x.tracking.trackers.mlflow import MlflowTracker
from tests.support.mlflow_server import MlflowServer


@pytest.fixture(autouse=True)
def _prompt(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for name, seconds in {"GATHER_S": 0.02, "RETRY_S": 0.05, "FINISH_WAIT_S": 1.0}.items():
        monkeypatch.setattr(f"gpt2x.tracking.mlflow_mirror.{name}", seconds)
    monkeypatch.setattr("gpt2x.tracking.mlflow_sender.RETRY_S", 0.02)


@pytest.fixture
def server():
    with MlflowServer() as server:
        yield server


class Run:
    """A run of a few steps that is mirrored."""

    def __init__(self, run_dir, server):
        self.run_dir, self.server, self.warnings = run_dir, server, []
        settings = TrackerConfig(name="mlflow", system_metrics=False, uri=server.uri)
        self.tracker = MlflowTracker(settings, run_dir.parent, warn=self.warnings.append)
        self.log = MetricsLog(run_dir / "metrics.jsonl")

    def start(self, checkpoint=0):
        self.log.rewind(checkpoint)
        self.tracker.start(RunInfo("pretrain", "a/b", self.run_dir, tags={"run_dir": str(self.run_dir), "host": "h"}))
        return self

    def steps(self, first, last):
        for step in range(first, last + 1):
            values = {
                "train/loss": math.nan if step == 2 else 1 / step,
                "bad": 2.0 * step,
                "perf/step_time_s": time.time(),
            }
            self.tracker.log_metrics(*self.log.append(step, values))
            time.sleep(0.01)
        return self

    def end(self, status="FINISHED"):
        self.tracker.finish(status)
        return self

    @property
    def stored(self):
        return self.server.runs[RunRecord.load(self.run_dir).run_id]

    def require_whole(self, status, but=()):
        """Every value of metrics.jsonl is in MLflow, each step once, with its time; and the state is right."""
        lines = jsonl.read_after(self.run_dir / "metrics.jsonl", 0)[0]
        expected = [
            (key, str(value), round(time_s * 1000), step)
            for step, time_s, values in lines
            for key, value in values.items()
            if key not in but
        ]
        assert sorted(self.stored["metrics"]) == sorted(expected)
        assert self.stored["info"]["status"] == status
        assert self.stored["info"]["end_time"] == round(RunRecord.load(self.run_dir).end_time_s * 1000)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def on(path_part, wrong):
    return lambda path, request: wrong if path_part in path else None


@pytest.mark.parametrize("wrong", [500, 503, 429, 403, "hang"])
@pytest.mark.parametrize("path", ["", "log-batch", "runs/create"])
def test_a_server_that_fails_until_the_end_gets_all_by_sync(tmp_path, server, wrong, path):
    server.fault = on(path, wrong)
    run = Run(tmp_path / "run", server).start().steps(1, 5).end()
    assert "gpt2x sync" in run.warnings[-1]
    assert len(run.warnings) <= 3
    server.fault = on("", None)
    sync(run.run_dir)
    run.require_whole("FINISHED")
    assert sync(run.run_dir) == 0


@pytest.mark.parametrize("wrong", [500, "hang"])
def test_a_server_that_comes_back_gets_all_without_sync(tmp_path, server, wrong):
    server.fault = on("", wrong)
    run = Run(tmp_path / "run", server).start().steps(1, 3)
    wait_for(lambda: server.num_requests)
    server.fault = on("", None)
    wait_for(lambda: RunRecord.load(run.run_dir).run_id)
    server.fault = on("log-batch", wrong)
    run.steps(4, 6)
    server.fault = on("", None)
    run.steps(7, 8).end()
    run.require_whole("FINISHED")
    assert not any("gpt2x sync" in text for text in run.warnings)


def test_a_metric_that_is_rejected_keeps_no_other_back(tmp_path, server):
    server.fault = lambda path, request: (
        400 if any(each["key"] == "bad" for each in request.get("metrics", [])) else None
    )
    run = Run(tmp_path / "run", server).start().steps(1, 6).end()
    run.require_whole("FINISHED", but=["bad"])
    assert [text for text in run.warnings if "gpt2x sync" in text and "metric bad (" in text]
    with pytest.raises(UserError, match=r"does not take a part of .*metric bad \("):
        sync(run.run_dir)
    server.fault = on("", None)
    assert sync(run.run_dir) == 6
    run.require_whole("FINISHED")


def test_a_value_that_is_rejected_keeps_none_of_its_metric_back(tmp_path, server):
    server.fault = lambda path, request: (
        400 if any(each["value"] == "NaN" for each in request.get("metrics", [])) else None
    )
    run = Run(tmp_path / "run", server).start().steps(1, 6).end()
    server.fault = on("", None)
    assert sync(run.run_dir) == 1
    run.require_whole("FINISHED")


@pytest.mark.parametrize("wrong", [500, "hang"])
def test_a_store_of_artifacts_that_fails_stops_no_metrics(tmp_path, server, wrong):
    server.fault = on("mlflow-artifacts", wrong)
    run = Run(tmp_path / "run", server).start()
    (run.run_dir / "config.yaml").write_text("seed: 1\n")
    run.tracker.log_artifact(run.run_dir / "config.yaml")
    run.steps(1, 4)
    run.tracker.set_tags({"checkpoint.newest": "step_4"})
    run.end("FAILED")
    run.require_whole("FAILED")
    assert run.stored["tags"]["checkpoint.newest"] == "step_4"
    assert "gpt2x sync" in run.warnings[-1]
    server.fault = on("", None)
    assert sync(run.run_dir) == 0
    assert [*server.artifacts.values()] == [b"seed: 1\n"]


def test_parameters_and_tags_that_are_rejected_stop_nothing(tmp_path, server):
    def fault(path, request):
        keys = {each["key"] for name in ("params", "tags") for each in request.get(name, [])}
        return 400 if keys & {"seed", "bad"} or ("runs/create" in path and "host" in keys) else None

    server.fault = fault
    run = Run(tmp_path / "run", server)
    run.tracker.start(RunInfo("pretrain", "a/b", run.run_dir, params={"seed": 1}, tags={"host": "h", "bad": "x"}))
    run.steps(1, 3).end()
    run.require_whole("FINISHED")
    assert run.stored["tags"]["host"] == "h"
    assert "the tag bad" in run.warnings[-1]
    assert "the parameters" in run.warnings[-1]


def test_a_run_that_is_deleted_meanwhile_is_replaced_by_a_whole_one(tmp_path, server):
    run = Run(tmp_path / "run", server).start().steps(1, 3)
    wait_for(lambda: RunRecord.load(run.run_dir).run_id)
    first = run.stored
    wait_for(lambda: len(first["metrics"]) == 9)
    del server.runs[first["info"]["run_id"]]
    run.steps(4, 6).end()
    run.require_whole("FINISHED")
    assert len(server.runs) == 1
    assert any("was deleted there" in text for text in run.warnings)


def test_steps_that_a_killed_run_repeats_are_there_once(tmp_path, server):
    """Whatever had arrived when it was killed; it does not matter how often."""
    killed = Run(tmp_path / "run", server).start().steps(1, 6)
    wait_for(lambda: RunRecord.load(killed.run_dir).run_id and killed.stored["metrics"])
    again = Run(tmp_path / "run", server).start(checkpoint=3).steps(4, 5)
    last = Run(tmp_path / "run", server).start(checkpoint=3).steps(4, 9).end()
    last.require_whole("FINISHED")
    assert len(server.runs) == 1
    for run in (killed, again):
        run.tracker.finish("FAILED")  # as no process that was killed could


def test_a_result_that_differs_is_sent_and_said(tmp_path, server):
    run = Run(tmp_path / "run", server).start().steps(1, 3).end("KILLED")
    again = Run(tmp_path / "run", server).start(checkpoint=2)
    again.tracker.log_metrics(*again.log.append(3, {"train/loss": 7.0}))
    again.end()
    assert sorted(server.points(RunRecord.load(run.run_dir).run_id)["train/loss", 3]) == [str(1 / 3), "7.0"]
    assert any("other values of 1 steps" in text for text in again.warnings) or sync(run.run_dir) == 0


def test_the_next_run_of_the_store_closes_those_that_were_killed(tmp_path, server, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "h")
    killed = Run(tmp_path / "killed", server).start().steps(1, 3).end()
    noted = json.loads((killed.run_dir / "mlflow_run.json").read_text()) | {"status": "RUNNING", "end_time_s": 0.0}
    (killed.run_dir / "mlflow_run.json").write_text(json.dumps(noted))  # as kill -9 leaves it
    killed.stored["info"]["status"] = "RUNNING"
    killed.log.append(4, {"train/loss": 0.25})
    run = Run(tmp_path / "run", server).start().steps(1, 2)
    wait_for(lambda: killed.stored["info"]["status"] == "KILLED")
    run.end()
    killed.require_whole("KILLED")
    assert killed.stored["info"]["end_time"] == round(jsonl.last_time(killed.run_dir / "metrics.jsonl") * 1000)


@pytest.mark.parametrize("noted", [{}, {"start_time_s": 5.0}], ids=["the same run", "a run that began later"])
def test_a_run_that_was_created_and_not_noted_is_adopted(tmp_path, server, noted):
    Run(tmp_path / "run", server).start().steps(1, 5).end()
    record = RunRecord.load(tmp_path / "run")
    earlier_id = record.run_id
    record.update(tmp_path / "run", run_id=None, **noted)  # as a kill right after the creation leaves it
    sync(tmp_path / "run")
    assert (RunRecord.load(tmp_path / "run").run_id == earlier_id) == (not noted)
    assert len(server.runs) == 1 + len(noted)
    for run_id in server.runs:
        assert all(len(values) == 1 for values in server.points(run_id).values())


def test_a_copy_of_a_run_directory_has_a_run_of_its_own(tmp_path, server):
    import shutil

    run = Run(tmp_path / "run", server).start().steps(1, 3).end()
    shutil.copytree(run.run_dir, tmp_path / "copy")
    copy = Run(tmp_path / "copy", server).start(checkpoint=3).steps(4, 5).end()
    copy.require_whole("FINISHED")
    run.require_whole("FINISHED")
    assert len(server.runs) == 2


def test_an_interrupt_ends_the_wait_for_a_silent_server(tmp_path, server, monkeypatch):
    server.fault = on("", "hang")
    run = Run(tmp_path / "run", server).start().steps(1, 2)
    wait_for(lambda: server.num_requests)

    def interrupt(thread, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.end("KILLED")
    assert "gpt2x sync" in run.warnings[-1]
    assert RunRecord.load(run.run_dir).status == "KILLED"
