"""Which directories are runs, how they ended, in what they differ and what they are called by it."""

import json
import os
import time

import pytest
from omegaconf import OmegaConf

from gpt2x.errors import UserError
from gpt2x.reports.comparison import compare, differences, results
from gpt2x.reports.find import find_runs
from gpt2x.reports.naming import rounded
from gpt2x.reports.run import is_lower_better, read_run
from gpt2x.tasks.registry import TASKS
from tests.reports.conftest import write_job
from tests.support.configs import typed


def paths(runs, root):
    return [str(run.path.relative_to(root)) for run in runs]


# ---- directories


def test_a_folder_has_the_runs_below_it_by_job_and_no_copies(write_run, tmp_path):
    for number in (10, 2):
        write_run(f"outputs/pretrain/sweep/{number}", job={"number": number, "varied": [f"seed={number}"]})
    write_job(tmp_path / "outputs/pretrain/sweep/3", 3, ["model.num_heads=5"], status="failed", message="no.")
    write_run("outputs/pretrain/gpt2_tiny/2026-01-01")
    write_run("outputs/pretrain/gpt2_tiny/2026-01-01/checkpoints/step_3", ())
    write_run("outputs/mlartifacts/1/abc/artifacts", ())
    for name in ("sweep.json", "metrics.jsonl"):  # of the multirun as a whole
        (tmp_path / "outputs/pretrain/sweep" / name).write_text('{"step": 1, "time": 1}\n', encoding="utf-8")
    outputs = tmp_path / "outputs"
    expected = ["gpt2_tiny/2026-01-01", "sweep/2", "sweep/3", "sweep/10"]
    assert paths(find_runs([str(outputs)], outputs), outputs / "pretrain") == expected
    assert paths(find_runs(["pretrain"], outputs), outputs / "pretrain") == [
        each
        for each in expected
        if each != "sweep/3"  # a job without a configuration has no experiment
    ]
    one = str(outputs / "pretrain/sweep/2")
    assert len(find_runs([one, f"{one}/", str(outputs / "pretrain/sweep")], outputs)) == 3


def test_what_is_no_run_is_an_error_that_says_so(write_run, tmp_path):
    write_run("outputs/run", tracker__experiment="mine")
    (tmp_path / "empty").mkdir()
    for argument, message in {
        "empty": "holds no runs",
        "outputs/run/metrics.jsonl": "is a file; give the run directory",
        "yours": "neither a directory nor an experiment.*Experiments there: mine",
    }.items():
        path = argument if argument == "yours" else str(tmp_path / argument)
        with pytest.raises(UserError, match=message):
            find_runs([path], tmp_path / "outputs")


# ---- how they ended


def test_the_status_of_a_run(write_run, tmp_path):
    assert read_run(write_run("finished")).status == "finished"
    assert read_run(write_run("empty", ())).status == "no metrics yet"
    running = write_run("running", is_finished=False)
    assert read_run(running).status == "running"
    long_ago = time.time() - 3600
    os.utime(running / "metrics.jsonl", (long_ago, long_ago))
    assert read_run(running).status == "stopped"
    (running / "mlflow_run.json").write_text('{"status": "KILLED"}', encoding="utf-8")
    assert read_run(running).status == "killed"
    pruned = write_run("pruned", job={"number": 0, "varied": [], "status": "pruned"})
    assert read_run(pruned).status == "pruned"


def test_a_resumed_run_is_not_finished_by_an_older_picture(write_run):
    path = write_run("run")
    os.utime(path / "loss.png", (1, 1))
    assert read_run(path).status == "running"


def test_damage_is_named_with_its_line(write_run):
    path = write_run("run")
    (path / "metrics.jsonl").write_text('{"step": 1, "time": 1}\nnonsense\n{"step": 2, "time": 2}\n', encoding="utf-8")
    run = read_run(path)
    assert run.status == "damaged"
    assert "metrics.jsonl, line 2" in run.message
    path = write_run("other")
    (path / "config.yaml").write_text("a: [", encoding="utf-8")
    assert read_run(path).status == "damaged"


def test_the_better_value_is_that_of_every_task():
    for name in TASKS.names():
        for metric, direction in TASKS.load(name).metrics.items():
            assert is_lower_better(metric) == (direction == "lower"), metric
    assert not is_lower_better("perf/tokens_per_s")
    assert is_lower_better("perf/step_time_s")


# ---- names and groups


def test_runs_are_called_by_the_fewest_keys_and_grouped_over_seeds(write_run):
    runs = []
    for rate, layers in ((1e-3, 2), (3e-3, 3)):  # the layers follow from the rate
        for seed in (0, 1):
            keys = {"optimizer__learning_rate": rate, "model__num_layers": layers, "paths__outputs": f"{rate}{seed}"}
            runs.append(read_run(write_run(f"{rate}/{seed}", seed=seed, val={3: rate + seed}, **keys)))
    comparison = compare(runs)
    assert [group.name for group in comparison.groups] == ["num_layers=2", "num_layers=3"]
    assert [group.counted for group in comparison.groups] == [(0, 1), (2, 3)]
    assert comparison.names[3] == "num_layers=3 seed=1"
    assert set(comparison.differing) == {"seed", "optimizer.learning_rate", "model.num_layers", "paths.outputs"}


def test_an_option_names_the_keys_that_it_sets(write_run):
    runs = [
        read_run(write_run(name, model__name=name, model__num_layers=layers)) for name, layers in (("a", 1), ("b", 2))
    ]
    assert compare(runs).names == ["model=a", "model=b"]


def test_only_finished_runs_count_and_one_per_seed(write_run):
    first, again, other = (read_run(write_run(name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    unfinished = read_run(write_run("d", is_finished=False, seed=2))
    comparison = compare([first, again, other, unfinished])
    assert comparison.groups[0].counted == (1, 2)
    assert comparison.excluded == [
        "gpt2_tiny/pydocs seed=0 (a) (its seed ran again)",
        "gpt2_tiny/pydocs seed=2 (running)",
    ]
    assert comparison.names[:2] == ["gpt2_tiny/pydocs seed=0 (a)", "gpt2_tiny/pydocs seed=0 (b)"]


def test_a_job_that_never_started_is_listed_by_its_overrides(write_run, tmp_path):
    run = read_run(write_run("sweep/0", model__num_heads=2, job={"number": 0, "varied": ["model.num_heads=2"]}))
    write_job(tmp_path / "sweep/1", 1, ["model.num_heads=5", "seed=7"], status="failed", message="no.")
    comparison = compare([run, read_run(tmp_path / "sweep/1")])
    assert comparison.names == ["num_heads=2 seed=0", "num_heads=5 seed=7"]
    assert [run.status for run in comparison.runs] == ["finished", "failed"]
    assert comparison.differing == ["seed", "model.num_heads"]


def test_nothing_to_compare_is_an_error(write_run):
    with pytest.raises(UserError, match=r"nothing to compare yet.*no metrics yet"):
        compare([read_run(write_run("empty", ()))])
    with pytest.raises(UserError, match=r"--metric val/los: no run has it; did you mean val/loss"):
        compare([read_run(write_run("run", val={3: 1.0}))], "val/los")


# ---- tables


def test_configurations_of_many_runs_are_rows(write_run):
    runs = [read_run(write_run(str(n), model__num_heads=n, val={3: 9.0 - n})) for n in (1, 2, 4, 8, 16, 32, 64)]
    few, many = compare(runs[:3]), compare(runs)
    assert [cell.text for cell in differences(few).rows[0]] == ["model.num_heads", "1", "2", "4"]
    assert [[cell.text for cell in row] for row in differences(many).rows][3] == ["num_heads=8", "8"]
    assert differences(many).columns == ["run", "model.num_heads"]
    assert few.summary == "best val/loss: 5.0000 at step 3, num_heads=4"


def test_evaluations_have_their_own_intervals_and_nothing_best(tmp_path):
    values = OmegaConf.to_container(OmegaConf.structured(typed("evaluate", "load=x", "dataset.path=y")))
    metrics = {"eval/ppl": 20.5, "eval/ppl_low": 20.25, "eval/ppl_high": 20.75}
    for load in ("runs/a/checkpoints/step_1", "runs/b/checkpoints/step_1"):
        path = tmp_path / load.replace("/", "_")
        path.mkdir()
        (path / "config.yaml").write_text(OmegaConf.to_yaml(values | {"load": load}), encoding="utf-8")
        line = json.dumps({"step": 1, "time": 1.0, **metrics})
        (path / "metrics.jsonl").write_text(f"{line}\n", encoding="utf-8")
        (path / "results.json").write_text("{}", encoding="utf-8")
    comparison = compare(find_runs([str(tmp_path)], tmp_path))
    assert comparison.names == ["load=a/checkpoints/step_1", "load=b/checkpoints/step_1"]
    table = results(comparison)
    assert table.columns == ["run", "status", "step", "eval/ppl"]
    assert table.rows[0][3].text == "20.50 [20.25, 20.75]"
    assert list(comparison.measured()) == ["eval/ppl, last"]


def test_long_numbers_are_rounded_if_they_stay_different():
    assert rounded(["0.006431172050131994", "0.01", "gpt2_small_and_more"]) == [
        "0.006431",
        "0.01",
        "gpt2_small_and_more",
    ]
    alike = ["0.00643117205", "0.00643117206"]
    assert rounded(alike) == alike
