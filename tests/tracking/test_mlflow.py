"""Against real sqlite stores and a closed port; MLflow itself is not replaced."""

import json
import math
import os
import socket
import subprocess
import sys
import time

import pytest

from gpt2x.config import TrackerConfig
from gpt2x.errors import UserError
from gpt2x.tracking import DataInput, MetricsLog, RunInfo
from gpt2x.tracking.mlflow_record import hold_live, is_dead
from gpt2x.tracking.mlflow_store import curves_page, resolve_uri, run_page, sweep_page, where_to_look
from gpt2x.tracking.mlflow_sync import sync
from gpt2x.tracking.trackers.mlflow import MlflowTracker
from tests.commands import sync as main

CPU_USE = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory):
    """One store for all tests of this file: making one takes seconds."""
    return tmp_path_factory.mktemp("outputs")


def config(**values):
    return TrackerConfig(**({"name": "mlflow", "system_metrics": False} | values))


def info(run_dir, **values):
    return RunInfo(**({"experiment": "pretrain", "run_name": "gpt2_tiny/pydocs", "run_dir": run_dir} | values))


def client(outputs):
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{outputs}/mlflow.db")


def record(run_dir):
    return json.loads((run_dir / "mlflow_run.json").read_text())


def train(tracker, run_dir, steps, status="FINISHED", **values):
    """A run of `steps`; returns the warnings and what the loop itself took (s)."""
    log = MetricsLog(run_dir / "metrics.jsonl")
    tracker.start(info(run_dir, **values))
    start = time.monotonic()
    for step in steps:
        metrics = {"train/loss": 10 / step, "train/lr": 1e-3}
        tracker.log_metrics(*log.append(step, metrics))
    took = time.monotonic() - start
    tracker.finish(status)
    return took


def closed_port_uri():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.run
def test_a_run_is_mirrored_whole(tmp_path, outputs, monkeypatch, capfd):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    warnings = []
    tracker = MlflowTracker(config(system_metrics=True), outputs, warn=warnings.append)
    picture = tmp_path / "loss.png"
    picture.write_bytes(b"png")
    log = MetricsLog(tmp_path / "metrics.jsonl")
    params = {"model": {"num_layers": 4}, "many": {f"key{i}": i for i in range(150)}, "long": "x" * 7000}
    tracker.start(info(tmp_path, params=params, tags={"layout": "single", "git.sha": "abc"}))
    for step in range(1, 21):
        metrics = {"train/loss": math.nan if step == 3 else 1 / step, "bad[key]": 1.0}
        tracker.log_metrics(*log.append(step, metrics))
    tracker.log_artifact(picture)
    deadline = time.monotonic() + 60
    while record(tmp_path)["run_id"] is None and time.monotonic() < deadline:  # making the store takes seconds
        time.sleep(0.1)
    while not client(outputs).get_run(record(tmp_path)["run_id"]).data.metrics.keys() & {CPU_USE}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracker.finish("FINISHED")
    tracker.finish("FINISHED")

    run = client(outputs).get_run(record(tmp_path)["run_id"])
    assert warnings == []
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "gpt2_tiny/pydocs"
    assert run.data.params["model.num_layers"] == "4"
    assert len(run.data.params) == 152
    assert run.data.tags["layout"] == "single"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    history = client(outputs).get_metric_history(run.info.run_id, "train/loss")
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(m.step, m.timestamp) for m in history] == [(r["step"], round(r["time"] * 1000)) for r in rows]
    assert [m.value for m in history if m.step != 3] == [1 / step for step in range(1, 21) if step != 3]
    assert run.data.metrics["bad_key_"] == 1.0
    assert [f.path for f in client(outputs).list_artifacts(run.info.run_id)] == ["loss.png"]
    assert run.info.artifact_uri.startswith(f"file://{outputs}/mlartifacts/pretrain/")
    assert sync(tmp_path) == 0
    printed = capfd.readouterr()
    page = curves_page(run.info.experiment_id, run.info.run_id, ["train/loss"])
    command = f"mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///{outputs}/mlflow.db"
    assert printed == (f"MLflow: http://127.0.0.1:5000/{page} after: {command}\n", "")


@pytest.mark.run
def test_resume_goes_on_in_the_same_run(tmp_path, outputs):
    train(MlflowTracker(config(), outputs), tmp_path, range(1, 4), "KILLED", params={"steps": 3, "lr": 1})
    run_id = record(tmp_path)["run_id"]
    assert client(outputs).get_run(run_id).info.status == "KILLED"
    train(MlflowTracker(config(), outputs), tmp_path, range(4, 7), params={"steps": 6, "lr": 1, "new": 0})
    assert record(tmp_path)["run_id"] == run_id
    run = client(outputs).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [m.step for m in client(outputs).get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert run.data.params == {"steps": "3", "lr": "1", "new": "0"}
    assert run.data.tags["resumed/steps"] == "6"


def test_resume_id_and_names_in_config_rule(tmp_path, outputs):
    train(MlflowTracker(config(experiment="mine", run_name="first"), outputs), tmp_path / "a", [1])
    run_id = record(tmp_path / "a")["run_id"]
    train(MlflowTracker(config(), outputs), tmp_path / "b", [2], resume_id=run_id)
    run = client(outputs).get_run(run_id)
    assert record(tmp_path / "b")["run_id"] == run_id
    assert run.info.run_name == "first"
    assert client(outputs).get_experiment(run.info.experiment_id).name == "mine"
    assert run.data.metrics["train/loss"] == 5.0


def test_equal_names_get_numbers_and_a_given_name_does_not(tmp_path, outputs):
    for name in ("a", "b", "c"):
        train(MlflowTracker(config(), outputs), tmp_path / name, [1], run_name="gpt2_tiny/it's")
    for name in ("d", "e"):
        train(MlflowTracker(config(run_name="mine"), outputs), tmp_path / name, [1])
    names = [client(outputs).get_run(record(tmp_path / name)["run_id"]).info.run_name for name in "abcde"]
    assert names == ["gpt2_tiny/it's", "gpt2_tiny/it's (2)", "gpt2_tiny/it's (3)", "mine", "mine"]


def test_tags_data_sets_and_a_description(tmp_path, outputs):
    inputs = [
        DataInput("pydocs", "a" * 64, "train", "/texts", 10, 320),
        DataInput("pydocs", "b" * 64, "validation", "/texts", 2),
    ]
    settings = config(tags={"team": "nlp", "seed": 3, "none": None}, description="**Why** it was run")
    tracker = MlflowTracker(settings, outputs)
    tags = {"command": "/usr/bin/python train.py seed=1", "git.sha": "abc"}
    tracker.start(info(tmp_path, inputs=inputs, tags=tags))
    tracker.set_tags({"checkpoint.newest": "step_1"})
    tracker.set_tags({"checkpoint.newest": "step_2", "checkpoint.best": "step_1"})
    tracker.finish("FINISHED")
    run = client(outputs).get_run(record(tmp_path)["run_id"])
    shown = {"team": "nlp", "seed": "3", "mlflow.note.content": "**Why** it was run", "mlflow.source.name": "train.py"}
    shown |= {"checkpoint.newest": "step_2", "checkpoint.best": "step_1"}
    assert shown.items() <= run.data.tags.items()
    assert "none" not in run.data.tags
    read = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert (read["train"].name, read["train"].digest) == ("pydocs", "a" * 36)
    assert json.loads(read["train"].profile) == {"num_rows": 10, "num_tokens": 320}
    assert json.loads(read["validation"].profile) == {"num_rows": 2}
    assert json.loads(read["validation"].source) == {"uri": "/texts"}
    experiment = client(outputs).get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"

    client(outputs).set_tag(run.info.run_id, "mlflow.note.content", "by hand")
    again = MlflowTracker(settings, outputs)
    again.start(info(tmp_path, inputs=inputs, tags={"command": "python train.py resume=auto", "git.sha": "abc"}))
    again.finish("FINISHED")
    run = client(outputs).get_run(run.info.run_id)
    assert run.data.tags["mlflow.note.content"] == "by hand"
    assert run.data.tags["command"] == "/usr/bin/python train.py seed=1"
    assert run.data.tags["resumed/command"] == "python train.py resume=auto"
    assert len(run.inputs.dataset_inputs) == 2


def test_labels_that_mlflow_rejects_stay_apart(tmp_path, outputs):
    tracker = MlflowTracker(config(), outputs)
    tracker.start(info(tmp_path))
    values = {"f1/a+b": 1.0, "f1/a*b": 2.0, "f1/..": 3.0, "f1//x": 4.0, f"f1/{'k' * 300}": 5.0}
    tracker.log_metrics(*MetricsLog(tmp_path / "metrics.jsonl").append(1, values))
    tracker.finish("FINISHED")
    metrics = client(outputs).get_run(record(tmp_path)["run_id"]).data.metrics
    assert sorted(metrics.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert {"f1/a_b": 1.0, "f1/a_b 2": 2.0, "f1/__": 3.0, "f1/_/x": 4.0}.items() <= metrics.items()
    assert sync(tmp_path) == 0


def test_sync_closes_the_run_of_a_killed_process_and_leaves_a_living_one(tmp_path, outputs):
    train(MlflowTracker(config(), outputs), tmp_path, [1, 2])
    noted = record(tmp_path) | {"status": "RUNNING", "end_time_s": 0.0}  # as kill -9 leaves it
    (tmp_path / "mlflow_run.json").write_text(json.dumps(noted))
    living = hold_live(tmp_path)
    sync(tmp_path)
    assert client(outputs).get_run(noted["run_id"]).info.status == "RUNNING"
    living.close()
    sync(tmp_path)
    closed = client(outputs).get_run(noted["run_id"]).info
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["time"]
    assert (closed.status, closed.end_time) == ("KILLED", round(last * 1000))


@pytest.mark.launch
def test_a_process_that_is_killed_outright_is_known_to_be_dead(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from gpt2x.config import TrackerConfig\n"
        "from gpt2x.tracking import RunInfo, create_tracker\n"
        "tracker = create_tracker(TrackerConfig(name='mlflow', system_metrics=False), Path(sys.argv[1]))\n"
        "tracker.start(RunInfo('pretrain', 'a/b', Path(sys.argv[1])))\n"
        "print('started', flush=True); sys.stdin.read(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert run.stdout.readline() == "started\n"
    assert not is_dead(tmp_path)
    run.communicate()
    assert is_dead(tmp_path)
    assert record(tmp_path)["status"] == "RUNNING"
    assert not is_dead(tmp_path / "other"), "a directory of an older version, where nobody can know"


def test_a_lost_run_is_replaced_and_said(tmp_path, outputs):
    warnings = []
    train(MlflowTracker(config(), outputs, warn=warnings.append), tmp_path, [1], resume_id="0" * 32)
    assert len(warnings) == 1
    assert "has no run" in warnings[0]
    assert client(outputs).get_run(record(tmp_path)["run_id"]).info.status == "FINISHED"


def test_a_deleted_experiment_is_brought_back(tmp_path, outputs):
    train(MlflowTracker(config(experiment="gone"), outputs), tmp_path / "a", [1])
    store = client(outputs)
    store.delete_experiment(store.get_experiment_by_name("gone").experiment_id)
    train(MlflowTracker(config(experiment="gone"), outputs), tmp_path / "b", [1])
    assert store.get_run(record(tmp_path / "b")["run_id"]).info.status == "FINISHED"


def test_a_dead_server_costs_nothing_and_sync_replays(tmp_path, outputs, capsys, monkeypatch):
    monkeypatch.setattr("gpt2x.tracking.mlflow_mirror.FINISH_WAIT_S", 1.0)
    warnings = []
    tracker = MlflowTracker(config(uri=closed_port_uri()), outputs, warn=warnings.append)
    start = time.monotonic()
    took = train(tracker, tmp_path, range(1, 201))
    assert took < 2
    assert time.monotonic() - start < 30
    assert 1 <= len(warnings) <= 2  # that it does not answer (unless finish is faster), and how to sync
    assert "gpt2x sync" in warnings[-1]
    assert main([str(tmp_path)]) == 2
    assert "does not accept the run" in capsys.readouterr().err

    noted = record(tmp_path)  # the server is back, elsewhere
    noted |= {"uri": f"sqlite:///{outputs}/mlflow.db", "artifact_root": f"{outputs}/mlartifacts"}
    (tmp_path / "mlflow_run.json").write_text(json.dumps(noted))
    assert sync(tmp_path) == 400
    assert sync(tmp_path) == 0
    run = client(outputs).get_run(record(tmp_path)["run_id"])
    assert run.info.status == "FINISHED"
    history = client(outputs).get_metric_history(run.info.run_id, "train/loss")
    assert sorted((m.step, m.value) for m in history) == [(step, 10 / step) for step in range(1, 201)]


def test_sync_sends_the_missing_part_only(tmp_path, outputs):
    train(MlflowTracker(config(), outputs), tmp_path, range(1, 6))
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(6, {"train/loss": math.nan, "train/lr": math.inf})
    assert sync(tmp_path) == 2
    assert sync(tmp_path) == 0


@pytest.mark.launch
def test_a_store_whose_creation_was_interrupted_is_created_anew(tmp_path):
    """The process is killed as soon as the database has its first tables; MLflow cannot open such a file."""
    code = "import sys; from pathlib import Path; from gpt2x.tracking.mlflow_store import import_mlflow; "
    code += "from gpt2x.tracking.sqlite_store import create_store; import_mlflow(); create_store(Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "mlflow.db")])
    part = tmp_path / "mlflow.db.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.kill()
    assert process.wait() != 0
    assert not (tmp_path / "mlflow.db").exists()
    run_dir = tmp_path / "run"
    train(MlflowTracker(config(), tmp_path, print), run_dir, range(1, 3))
    assert client(tmp_path).get_run(record(run_dir)["run_id"]).info.status == "FINISHED"
    assert not part.exists()


@pytest.mark.launch
def test_three_first_users_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from gpt2x.config import TrackerConfig\n"
        "from gpt2x.tracking import MetricsLog, RunInfo, create_tracker\n"
        "out, run_dir = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "tracker = create_tracker(TrackerConfig(name='mlflow', system_metrics=False), out)\n"
        "tracker.start(RunInfo('pretrain', 'a/b', run_dir))\n"
        "tracker.log_metrics(*MetricsLog(run_dir / 'metrics.jsonl').append(1, {'train/loss': 1.0}))\n"
        "tracker.finish('FINISHED')\n"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    users = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(tmp_path / f"run{i}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for i in range(3)
    ]
    printed = [user.communicate(timeout=120)[0] for user in users]
    assert [user.returncode for user in users] == [0, 0, 0]
    for i in range(3):
        sync(tmp_path / f"run{i}")  # on a slow machine finish may have given up waiting
    runs = [client(tmp_path).get_run(record(tmp_path / f"run{i}")["run_id"]) for i in range(3)]
    assert [run.info.status for run in runs] == ["FINISHED"] * 3
    assert len({run.info.experiment_id for run in runs}) == 1
    assert not any("does not answer" in text or "Traceback" in text for text in printed), printed


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"mlflow.user": "x"}, r"tracker\.tags\.mlflow\.user is reserved by MLflow; .*tracker\.description"),
        ({"a*b": 1}, r"MLflow does not accept the key 'a\*b'"),
        ({"a//b": 1}, r"MLflow does not accept the key 'a//b'"),
        ({"k" * 251: 1}, "at most 250 characters"),
        ({"a": [1, 2]}, r"tracker\.tags\.a=\[1, 2\] is not a single value"),
        ({"a": "x" * 5001}, r"tracker\.tags\.a has 5001 characters, and MLflow accepts 5000"),
    ],
)
def test_a_tag_that_mlflow_rejects_is_the_users_mistake(tags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        MlflowTracker(config(tags=tags), tmp_path)


def test_the_line_that_says_where_to_look():
    line = where_to_look("https://user:secret@host:8080/mlflow/", run_page("3", "abc"))
    assert line == "MLflow: https://host:8080/mlflow/#/experiments/3/runs/abc?workflowType=machine_learning"
    line = where_to_look("postgresql://user:secret@host/db", sweep_page("3", "abc"))
    assert "secret" not in line
    assert "viewStateShareKey=abc" in line
    assert line.endswith(" after: mlflow ui --host 127.0.0.1 --backend-store-uri postgresql://user:PASSWORD@host/db")
    assert where_to_look("sqlite:////a b.db", "").endswith("--backend-store-uri 'sqlite:////a b.db'")
    assert curves_page("3", "abc", ["train/loss", "val/loss"]) == (
        "#/metric?runs=%5B%22abc%22%5D&experiments=%5B%223%22%5D&metric=%22train/loss%22"
        "&plot_metric_keys=%5B%22train/loss%22%2C%22val/loss%22%5D&x_axis=step&workflowType=machine_learning"
    )


@pytest.mark.parametrize(
    "uri", ["ftp://host", "./mlruns", "file:///tmp/mlruns", "http://", "sqlite://", "sqlite:///", ""]
)
def test_a_uri_that_mlflow_has_no_store_for_is_the_users_mistake(uri, tmp_path):
    with pytest.raises(UserError, match=r"tracker\.uri"):
        MlflowTracker(config(uri=uri), tmp_path)
    assert not list(tmp_path.iterdir())


def test_uris_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None, tmp_path) == (f"sqlite:///{tmp_path}/mlflow.db", f"{tmp_path}/mlartifacts")
    assert resolve_uri("sqlite:///a/b.db", tmp_path) == (f"sqlite:///{tmp_path}/a/b.db", f"{tmp_path}/a/mlartifacts")
    assert resolve_uri("https://host:5000", tmp_path) == ("https://host:5000", None)
    assert resolve_uri("mysql+pymysql://u@h/db", tmp_path)[1] == f"{tmp_path}/mlartifacts"


def test_sync_of_an_untracked_directory_and_of_a_damaged_record(tmp_path):
    with pytest.raises(UserError, match=r"mlflow_run\.json"):
        sync(tmp_path)
    (tmp_path / "mlflow_run.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        sync(tmp_path)


def test_an_unknown_status_is_refused(tmp_path):
    with pytest.raises(ValueError, match="DONE"):
        MlflowTracker(config(), tmp_path).finish("DONE")
