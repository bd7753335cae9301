"""Hydra multirun: each job its own process, run directory and MLflow run."""

import sqlite3

import pytest

from tests.support.processes import start
from tests.support.small_runs import curve, run_dirs, small

pytestmark = pytest.mark.launch

FAST = ["trainer.max_steps=2", "trainer.global_batch_size=4", "model.num_layers=1"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    options = [option for option in small(directory) if option not in ("tracker=none", "model.num_heads=2")]
    done = start("train.py", "-m", "seed=1,2,1", "model.num_heads=2,3", *options, *FAST, check=False)
    return directory, done


def test_every_job_has_a_run_directory_and_a_bad_one_does_not_stop_the_others(sweep):
    directory, done = sweep
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "model.num_heads=3" in done.stderr
    runs = run_dirs(directory)
    assert len(runs) == 3
    first, second, third = (curve(run) for run in sorted(runs, key=lambda run: int(run.name)))
    assert first == third != second


def test_every_job_has_an_mlflow_run(sweep):
    directory, _ = sweep
    with sqlite3.connect(directory / "outputs" / "mlflow.db") as store:
        runs = store.execute("select name, status from runs where name not like 'sweep_%'").fetchall()
        assert [status for _, status in runs] == ["FINISHED"] * 3
        assert len({name for name, _ in runs}) == 3, "jobs can be told apart"
        seeds = store.execute("select value from params where key = 'seed'").fetchall()
        assert sorted(seeds) == [("1",), ("1",), ("2",)]
        tags = {key for (key,) in store.execute("select distinct key from tags")}
        assert {"layout", "hardware", "data.hash", "version.mindspore"} <= tags
        keys = {key for (key,) in store.execute("select distinct key from metrics")}
        assert {"train/loss", "train/lr", "perf/tokens_per_s", "perf/mfu", "val/loss", "val/ppl"} <= keys
        (name,) = store.execute("select name from experiments where name != 'Default'").fetchone()
        assert name == "pretrain"
    artifacts = {path.name for path in (directory / "outputs" / "mlartifacts").rglob("*") if path.is_file()}
    assert {"config.yaml", "loss.png"} <= artifacts
