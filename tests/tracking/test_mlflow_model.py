"""tracker.log_model: the model of a training in MLflow's store and registry, and served by MLflow's own server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from gpt2x.tracking.mlflow_sync import sync
from tests.commands import convert
from tests.support.decide import refusal


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's code before it
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


LOGGED = ["tracker=mlflow", "tracker.log_model=true", "tracker.registered_model=words", "tracker.system_metrics=false",
          "trainer.max_steps=3", "trainer.eval_every_steps=1", "trainer.keep_best=true"]  # fmt: skip


@pytest.mark.run
def test_a_training_logs_and_registers_its_best_checkpoint(zoo, tmp_path, monkeypatch):
    from mlflow.pyfunc import load_model
    from mlflow.tracking.client import MlflowClient

    finished = zoo.plain.again(tmp_path, *LOGGED)
    store = f"sqlite:///{tmp_path}/outputs/mlflow.db"
    client = MlflowClient(tracking_uri=store)
    record = json.loads((finished.run_dir / "mlflow_run.json").read_text())
    (output,) = client.get_run(record["run_id"]).outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    (version,) = client.search_model_versions("name='words'")
    assert "warning" not in finished.stdout + finished.stderr
    assert (str(logged.status), logged.source_run_id) == ("READY", record["run_id"])
    assert (version.run_id, version.source) == (record["run_id"], logged.artifact_location)
    rows = [json.loads(line) for line in (finished.run_dir / "metrics.jsonl").read_text().splitlines()]
    best = min(rows, key=lambda row: row["val/loss"])
    assert output.step == int(logged.tags["step"]) == best["step"]
    assert {metric.key: metric.value for metric in logged.metrics}["val/loss"] == best["val/loss"]
    assert f"mlflow models serve --env-manager local -m {finished.run_dir}/mlflow_model" in finished.stdout

    assert sync(finished.run_dir) == 0  # and no second model or version
    assert len(client.get_run(record["run_id"]).outputs.model_outputs) == 1
    assert len(client.search_model_versions("name='words'")) == 1
    shutil.rmtree(finished.run_dir)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    (row,) = load_model("models:/words/1").predict([{"prompt": "the cat"}], {"max_new_tokens": 3}).to_dict("records")
    assert row["num_tokens"] == 3


@pytest.mark.run
def test_a_store_that_is_away_only_warns_and_sync_logs_the_model(zoo, tmp_path):
    from mlflow.tracking.client import MlflowClient

    blocked = tmp_path / "blocked"
    blocked.write_text("not a folder")
    finished = zoo.plain.again(tmp_path, *LOGGED, f"tracker.uri=sqlite:///{blocked}/mlflow.db")
    assert f"gpt2x sync {finished.run_dir}" in finished.stdout
    assert (finished.run_dir / "mlflow_model" / "MLmodel").is_file()
    blocked.unlink()
    sync(finished.run_dir)
    client = MlflowClient(tracking_uri=f"sqlite:///{blocked}/mlflow.db")
    assert [version.version for version in client.search_model_versions("name='words'")] == [1]


def test_keys_that_would_do_nothing_are_rejected():
    model, name = "tracker.log_model=true", "tracker.registered_model"
    assert "but tracker=none; use tracker=mlflow" in refusal("train", "tracker=none", model)
    assert "tracker.log_model=true, which is false" in refusal("train", "tracker=mlflow", f"{name}=a")
    assert "none with / or :" in refusal("train", "tracker=mlflow", model, f"{name}=a/b")
    assert "are for train.py; evaluate.py trains nothing" in refusal("evaluate", "load=x", model)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(port, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.launch
def test_mlflow_serves_a_converted_checkpoint(zoo, tmp_path):
    """From a directory without gpt2x, whose path is not on PYTHONPATH: the model's own code answers."""
    assert convert(["--to", "mlflow", "--output", str(tmp_path / "model"), str(zoo.plain.checkpoint(16))]) == 0
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(tmp_path / "model"), "-p", str(port)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    # uvicorn, which MLflow starts by its name, is beside Python
    environment["PATH"] = f"{os.path.dirname(sys.executable)}:{environment['PATH']}"
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--env-manager", "local"], cwd=tmp_path, env=environment, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while "Uvicorn running" not in (tmp_path / "log").read_text():
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        body = {"dataframe_split": {"columns": ["prompt"], "data": [["the cat"], ["hill"]]}}
        status, answer = post(port, body | {"params": {"max_new_tokens": 5}})
        assert (status, [row["num_tokens"] for row in answer["predictions"]]) == (200, [5, 5])
        assert post(port, {"inputs": {"prompt": ["the cat", "hill"]}, "params": {"max_new_tokens": 5}}) == (200, answer)
        status, answer = post(port, {"inputs": ["the cat"], "params": {"max_new_tokens": 99}})
        assert status == 400
        assert "with max_new_tokens=99 it exceeds model.max_seq_len=32" in answer["message"]
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
