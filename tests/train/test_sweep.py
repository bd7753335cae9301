"""Hydra multirun: jobs as processes of their own, under every launcher, and what the sweep says at its end."""

import csv
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from gpt2x.runtime.jobs import read_job, read_jobs
from tests.support.processes import start
from tests.support.small_runs import curve, run_dirs, small

pytestmark = pytest.mark.launch

FAST = ["trainer.max_steps=2", "trainer.global_batch_size=4", "model.num_layers=1"]
RATE = "optimizer.learning_rate"


def options(directory, *without):
    return [option for option in small(directory) if option not in without] + FAST


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    shared = options(directory, "tracker=none", "model.num_heads=2")
    done = start("train.py", "-m", "seed=1,2,1", "model.num_heads=2,3", *shared, check=False)
    return directory, done


def evaluations(run_dir: Path) -> list[float]:
    return [value for (value,) in curve(run_dir, "val/loss").values() if value is not None]


def only_sweep(directory) -> Path:
    (path,) = {path.parent for path in directory.rglob("sweep.json")}
    return path


def test_every_job_has_a_run_directory_and_a_bad_one_does_not_stop_the_others(sweep):
    directory, done = sweep
    assert done.returncode == 2
    runs = [run for run in run_dirs(directory) if run.name.isdigit()]
    assert len(runs) == 3
    first, second, third = (curve(run) for run in sorted(runs, key=lambda run: int(run.name)))
    assert first == third != second


def test_each_failure_is_told_where_it_happens_and_at_the_end(sweep):
    _, done = sweep
    reason = ": model.hidden_size=32 is not divisible by model.num_heads=3; use one of 1, 2, 4, 8, 16, 32 heads."
    for number, seed in ((1, 1), (3, 2), (5, 1)):
        assert f"error: job {number} (seed={seed} model.num_heads=3){reason}" in done.stderr
    names = ", ".join(f"{number} (seed={seed} model.num_heads=3)" for number, seed in ((1, 1), (3, 2), (5, 1)))
    assert f"  job {names}{reason}" in done.stderr
    assert "3 of 6 jobs failed; the others are done" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_end_has_a_table_the_best_job_and_a_csv(sweep):
    directory, done = sweep
    folder = only_sweep(directory)
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["finished"] * 3 + ["failed"] * 3
    values = [float(row["val/loss"]) for row in rows[:3]]
    assert values == sorted(values)
    for row in rows[:3]:
        assert float(row["val/loss"]) == min(evaluations(Path(row["run_dir"])))
    best = rows[0]
    assert f"best: job {best['job']} (seed={best['seed']} model.num_heads=2), val/loss {values[0]:.6g}" in done.stdout
    assert json.loads((folder / "sweep.json").read_text())["varied"] == ["seed", "model.num_heads"]


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


def search(directory: Path, launcher: str, *more: str):
    """Four trials, two at a time: Optuna's seed draws two good rates first, then two that learn nothing."""
    return start(
        "train.py", "-m", *options(directory), "hydra/sweeper=optuna", f"hydra/launcher={launcher}",
        "hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=4", "hydra/sweeper/sampler=random",
        "hydra.sweeper.sampler.seed=41", f"{RATE}=choice(0.01,1e-8)", "trainer.eval_every_steps=1",
        "sweep.pruner=median", "sweep.settings.n_startup_trials=2", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("search")
    done = search(directory, "joblib", "hydra.launcher.n_jobs=2")
    return directory, only_sweep(directory), done


def test_a_search_on_two_workers_ends_bad_trials_early(searched):
    _, folder, _ = searched
    jobs = read_jobs(folder)
    assert [job.varied for job in jobs] == [[f"{RATE}={rate}"] for rate in ("0.01", "0.01", "1e-08", "1e-08")]
    assert [job.status for job in jobs] == ["finished", "finished", "pruned", "pruned"]
    assert [len(evaluations(job.path)) for job in jobs] == [2, 2, 1, 1]
    best = min(job.value for job in jobs)
    assert f"best_value: {best}" in (folder / "optimization_results.yaml").read_text()


def test_lines_of_parallel_jobs_can_be_told_apart(searched):
    *_, done = searched
    for number in range(4):
        assert f"{number} | run directory: " in done.stdout


def test_a_sweep_that_is_started_again_runs_only_what_is_open(searched):
    """A job that was killed before its first checkpoint begins anew; Optuna is told what the others reached."""
    directory, folder, _ = searched
    jobs = read_jobs(folder)
    killed = jobs[1].path
    expected = curve(killed)
    before = {job.number: (job.path / "metrics.jsonl").stat().st_mtime_ns for job in jobs if job.path != killed}
    (killed / "job.json").write_text((killed / "job.json").read_text().replace('"finished"', '"running"'))
    shutil.rmtree(killed / "checkpoints")
    search(directory, "submitit_local", "resume=auto")
    assert read_job(killed).status == "finished"
    assert curve(killed) == curve(killed / "attempts" / "1") == expected
    for number, time in before.items():
        assert (folder / str(number) / "metrics.jsonl").stat().st_mtime_ns == time
