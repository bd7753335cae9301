"""The parent run of a multirun, in a real sqlite store and without one."""

import json

import pytest

from gpt2x.config import TrackerConfig
from gpt2x.runtime.jobs import JOB, Job, read_job
from gpt2x.tracking import MetricsLog, RunInfo
from gpt2x.tracking.description import spelled, sweep_name
from gpt2x.tracking.mlflow_record import RunRecord
from gpt2x.tracking.mlflow_sync import sync
from gpt2x.tracking.sweep_run import end_sweep_run
from gpt2x.tracking.trackers.mlflow import MlflowTracker

DEAD = "http://127.0.0.1:9"  # the port `discard`, where nobody listens


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def client(outputs):
    from mlflow.tracking.client import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{outputs}/mlflow.db")


def config(**values):
    return TrackerConfig(**({"name": "mlflow", "system_metrics": False} | values))


def job_of(sweep_dir, number, **varied) -> Job:
    run_dir = sweep_dir / str(number)
    overrides = [f"{key}={value}" for key, value in varied.items()]
    job = {"number": number, "overrides": overrides, "varied": overrides, "sweep_dir": str(sweep_dir)}
    run_dir.mkdir(parents=True)
    (run_dir / JOB).write_text(json.dumps(job | {"run_dir": str(run_dir)}))
    return read_job(run_dir)


def begin(sweep_dir, outputs, job, **settings):
    tracker = MlflowTracker(config(**settings), outputs, warn=lambda text: None)
    run_dir = sweep_dir / str(job.number)
    tracker.start(
        RunInfo("pretrain", spelled(job.varied), run_dir, tags={"git.sha": "abc"}, sweep_dir=sweep_dir,
                sweep_name=sweep_name(sweep_dir, job))
    )  # fmt: skip
    metrics = {"val/loss": 2.0 + job.number}
    tracker.log_metrics(*MetricsLog(run_dir / "metrics.jsonl").append(1, metrics))
    return tracker


def run_of(outputs, directory):
    return client(outputs).get_run(RunRecord.load(directory).run_id)


@pytest.mark.run
def test_jobs_are_below_one_parent_which_ends_with_the_sweep(tmp_path, outputs, capfd):
    sweep_dir = tmp_path / "sweep_1"
    jobs = [job_of(sweep_dir, number, seed=number) for number in (1, 2)]
    trackers = [begin(sweep_dir, outputs, job) for job in jobs]  # at the same time
    for tracker in trackers:
        tracker.finish("FINISHED")
    (parent,) = {run_of(outputs, sweep_dir / name).data.tags["mlflow.parentRunId"] for name in "12"}
    assert RunRecord.load(sweep_dir).run_id == parent
    assert run_of(outputs, sweep_dir).info.status == "RUNNING"
    assert capfd.readouterr().out == "", "the page of a sweep is printed once"

    table = sweep_dir / "sweep.csv"
    table.write_text("job,value\n")
    metrics = {"best/val/loss": 3.0, "best/step": 1.0, "jobs/finished": 2.0}
    end_sweep_run(sweep_dir, config(), outputs, experiment="pretrain", metrics=metrics, step=1, artifacts=[table])
    run = run_of(outputs, sweep_dir)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (parent, "FINISHED", "sweep_1: seed")
    assert run.data.metrics == metrics
    assert run.data.tags["git.sha"] == "abc"
    assert [file.path for file in client(outputs).list_artifacts(parent)] == ["sweep.csv"]
    assert f"viewStateShareKey={parent}" in capfd.readouterr().out
    views = client(outputs).get_experiment(run.info.experiment_id).tags
    view = json.loads(views[f"mlflow.sharedViewState.{parent}"])
    assert len(client(outputs).search_runs([run.info.experiment_id], view["searchFilter"])) == 2
    assert run_of(outputs, sweep_dir / "1").info.run_name == "seed=1"


@pytest.mark.run
def test_a_sweep_that_is_started_again_has_the_same_parent(tmp_path, outputs):
    sweep_dir = tmp_path / "sweep_2"
    begin(sweep_dir, outputs, job_of(sweep_dir, 0, seed=1)).finish("FINISHED")
    assert run_of(outputs, sweep_dir).info.status == "RUNNING"
    sync(sweep_dir)  # the sweep itself was killed
    first = run_of(outputs, sweep_dir)
    tracker = begin(sweep_dir, outputs, job_of(sweep_dir, 1, seed=2))
    tracker.finish("FINISHED")
    again = run_of(outputs, sweep_dir)
    assert (first.info.status, again.info.status) == ("KILLED", "RUNNING")
    assert first.info.run_id == again.info.run_id
    end_sweep_run(sweep_dir, config(), outputs, experiment="pretrain")
    assert run_of(outputs, sweep_dir).info.status == "FINISHED"


@pytest.mark.run
def test_without_mlflow_sync_of_the_sweep_repairs_all(tmp_path, outputs, capfd, monkeypatch):
    monkeypatch.setattr("gpt2x.tracking.mlflow_mirror.FINISH_WAIT_S", 1.0)
    sweep_dir = tmp_path / "sweep_3"
    for number in (0, 1):
        begin(sweep_dir, outputs, job_of(sweep_dir, number, seed=number), uri=DEAD).finish("FINISHED")
    end_sweep_run(sweep_dir, config(uri=DEAD), outputs, experiment="pretrain", metrics={"best/step": 1.0})
    assert f"gpt2x sync {sweep_dir}" in " ".join(capfd.readouterr().out.split())
    for directory in (sweep_dir, sweep_dir / "0", sweep_dir / "1"):  # the server is back, elsewhere
        record = json.loads((directory / "mlflow_run.json").read_text())
        record |= {"uri": f"sqlite:///{outputs}/mlflow.db", "artifact_root": f"{outputs}/mlartifacts"}
        (directory / "mlflow_run.json").write_text(json.dumps(record))
    assert sync(sweep_dir) == 3
    assert sync(sweep_dir) == 0
    parent = run_of(outputs, sweep_dir)
    assert (parent.info.status, parent.data.metrics) == ("FINISHED", {"best/step": 1.0})
    for name in "01":
        assert run_of(outputs, sweep_dir / name).data.tags["mlflow.parentRunId"] == parent.info.run_id
