"""A sweep of evaluate.py ends with one table: of real jobs, one of which fails, and of what jobs may leave behind."""

import csv
import json
import sqlite3

import numpy as np
import pytest

from gpt2x.config import EvaluateConfig
from gpt2x.evaluate.bootstrap import TextScores, WindowScores, load_scores
from gpt2x.evaluate.comparison import Outcome, labels, remarks, rows_of, show
from gpt2x.runtime.jobs import Job
from tests.support.processes import start

DATASET = "defaults: [text]\nname: {name}\nval_path: {path}\n"

# ---- a sweep of real jobs


@pytest.fixture(scope="module")
def sweep(zoo, tmp_path_factory):
    """Two checkpoints of a run and one that is not there, on two data sets of a user's own folder."""
    root = tmp_path_factory.mktemp("comparison")
    (root / "conf" / "dataset").mkdir(parents=True)
    text = (zoo.plain.folder / "corpus.txt").read_text(encoding="utf-8")
    for name, part in {"hills": text[:3000], "dogs": text[3000:5000]}.items():
        (root / f"{name}.txt").write_text(part, encoding="utf-8")
        option = DATASET.format(name=name, path=root / f"{name}.txt")
        (root / "conf" / "dataset" / f"{name}.yaml").write_text(option, encoding="utf-8")
    loads = ",".join(str(zoo.plain.checkpoint(step)) for step in (8, 16, 30))
    done = start("evaluate.py", "--config-dir", f"{root}/conf", "-m", f"load={loads}", "dataset=hills,dogs",
                 "evaluation.protocols=[reference,word]", "evaluation.bootstrap_resamples=200",
                 "tracker.system_metrics=false", f"paths.outputs={root}/found", f"paths.cache={root}/cache",
                 check=False)  # fmt: skip
    (sweep_dir,) = (root / "found" / "evaluate").iterdir()
    return root, sweep_dir, done


@pytest.mark.launch
def test_the_table_has_every_job_and_the_failed_ones_say_so(sweep):
    _, sweep_dir, done = sweep
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 3  # where it happens, and all reasons at the end
    assert "step_30" in done.stderr
    out = done.stdout[done.stdout.index("Comparison, with 95 % intervals") :]
    assert "reference/ppl" in out
    assert "word/ppl" in out
    assert "loss" not in out
    assert out.count("difference ") == 2
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in out.splitlines()]
    assert cells.count(["step_30", "failed", "failed"]) == 2
    rows = json.loads((sweep_dir / "comparison.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["checkpoint"], row["dataset"]) for row in rows if row["status"] == "failed"] == [
        ("step_30", "hills"), ("step_30", "dogs"),
    ]  # fmt: skip
    assert len(rows) == 2 * 2 * 4 + 2


@pytest.mark.launch
def test_values_are_those_of_the_jobs_and_differences_their_own(sweep):
    _, sweep_dir, _ = sweep
    rows = json.loads((sweep_dir / "comparison.json").read_text(encoding="utf-8"))["rows"]
    values = {(row["checkpoint"], row["dataset"], row["metric"]): row["value"] for row in rows}
    for row in (row for row in rows if row["status"] == "finished"):
        protocol, metric = row["metric"].split("/")
        results = json.loads((sweep_dir / str(row["job"]) / "results.json").read_text(encoding="utf-8"))["results"]
        found = results[protocol]
        assert [row["value"], row["low"], row["high"]] == [found[metric + end] for end in ("", "_low", "_high")]
        assert row["low"] < row["value"] < row["high"]
        if row["checkpoint"] == "step_8":
            assert row["difference"] is None
        else:
            expected = row["value"] - values["step_8", row["dataset"], row["metric"]]
            assert row["difference"] == pytest.approx(expected, rel=1e-9)
            assert row["difference_low"] < row["difference"] < row["difference_high"] < 0
    with (sweep_dir / "comparison.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["value"] and float(row["value"]) for row in table] == [row["value"] or "" for row in rows]


@pytest.mark.launch
def test_a_jobs_scores_are_its_losses(sweep):
    _, sweep_dir, _ = sweep
    results = json.loads((sweep_dir / "0" / "results.json").read_text(encoding="utf-8"))["results"]
    scores = load_scores(sweep_dir / "0" / "scores.npz")
    assert list(scores) == ["reference", "word"]
    for protocol, found in scores.items():
        assert found.metrics()[0] == pytest.approx(results[protocol]["loss"], rel=1e-12)
        assert len(found.nll) == results[protocol]["num_windows"]


@pytest.mark.launch
def test_mlflow_has_the_jobs_and_the_table(sweep):
    root, sweep_dir, _ = sweep
    with sqlite3.connect(root / "found" / "mlflow.db") as store:
        runs = store.execute("select run_uuid, name, status from runs").fetchall()
        metrics = {key for (key,) in store.execute("select distinct key from metrics")}
    assert {status for *_, status in runs} == {"FINISHED"}
    names = [name for _, name, _ in runs]
    assert len(names) == 5
    assert sum(name.startswith(sweep_dir.name) for name in names) == 1
    assert len(set(names)) == 5
    assert {"eval/word/ppl", "eval/word/ppl_low", "eval/word/ppl_high"} <= metrics
    (uuid,) = (uuid for uuid, name, _ in runs if name.startswith(sweep_dir.name))
    kept = {path.name for path in (root / "found" / "mlartifacts" / "evaluate" / uuid / "artifacts").iterdir()}
    assert kept == {"comparison.json", "comparison.csv"}


@pytest.mark.launch
def test_one_output_for_all_jobs_is_refused(sweep, tmp_path):
    root, _, _ = sweep
    done = start("evaluate.py", "--config-dir", f"{root}/conf", "-m", f"load={root},{root}/conf", "dataset=hills",
                 f"output={tmp_path}/all.json", "tracker=none", f"paths.outputs={tmp_path}", check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("output= would be written by every job of the sweep") == 1
    assert "Comparison" not in done.stdout
    assert not list(tmp_path.rglob("*.json"))


# ---- what jobs may leave behind


def job(number, load, dataset, *others, failed=False):
    return Job(
        number, [f"load={load}", f"dataset={dataset}", *others], [], "nowhere", f"nowhere/{number}",
        status="failed" if failed else "finished", choices={"dataset": dataset}, load=load,
    )  # fmt: skip


def outcome(scores, *, adapters=(), tokenizer="t", text="h"):
    metrics = {
        "/".join(filter(None, ("eval", key, metric))): float(value)
        for key, found in scores.items()
        for metric, value in zip(found.METRICS, found.metrics(), strict=True)
    }
    facts = {"adapters": list(adapters), "tokenizer_fingerprint": tokenizer, "data_sha256": text}
    return Outcome(metrics, scores, facts)


def windows(seed, number=40):
    return WindowScores(np.random.default_rng(seed).normal(60, 6, number), np.full(number, 20.0))


def texts(seed, number=60):
    random = np.random.default_rng(seed)
    label = np.arange(number) % 2
    return TextScores(random.exponential(1, number), label, np.where(random.random(number) < 0.8, label, 1 - label))


def config():
    return EvaluateConfig(seed=1)


def test_labels_say_what_jobs_do_not_share():
    jobs = [
        job(0, "/a/runs/x/step_1", "text", "dataset.val_path=/t/one.txt", "seed=3", "evaluation.stride=8"),
        job(1, "/a/runs/y/step_1", "text", "dataset.val_path=/t/two.txt", "seed=3", "evaluation.stride=16"),
    ]
    assert labels(jobs) == [
        ("x/step_1 evaluation.stride=8", "text val_path=one.txt"),
        ("y/step_1 evaluation.stride=16", "text val_path=two.txt"),
    ]
    assert labels(jobs[:1]) == [("step_1", "text")]
    elsewhere = [*jobs, job(2, "/b/hf", "text"), job(3, "/b/hf", "sst2")]
    assert [checkpoint.split()[0] for checkpoint, _ in labels(elsewhere)] == ["x/step_1", "y/step_1", "hf", "hf"]


def test_a_difference_wants_the_same_text_tokenizer_and_windows():
    jobs = [job(number, f"/m/{number}", "text") for number in range(5)]
    outcomes = {
        0: outcome({"word": windows(0)}),
        1: outcome({"word": windows(1)}),
        2: outcome({"word": windows(2)}, tokenizer="another"),
        3: outcome({"word": windows(3)}, text="another"),
        4: outcome({"word": windows(4, number=41)}),
    }
    rows = rows_of(jobs, outcomes, config())
    assert {row.checkpoint for row in rows if row.difference is not None} == {"1"}
    assert "2 tokenizers: only word/ppl can be compared" in " ".join(remarks(rows, outcomes))


def test_adapters_of_a_job_are_rows(capsys):
    scores = {"first/word": windows(0), "second/word": windows(1)}
    rows = rows_of([job(0, "/m/base", "text")], {0: outcome(scores, adapters=("x", "y"))}, config())
    assert [(row.model, row.metric) for row in rows if row.difference is not None] == [
        ("base + second", "word/loss"), ("base + second", "word/ppl"),
    ]  # fmt: skip
    show(rows)
    out = capsys.readouterr().out
    assert "base + first" in out
    assert out.count("difference") == 1


def test_classifiers_and_language_models_share_a_table(capsys):
    jobs = [job(0, "/m/lm", "text"), job(1, "/m/one", "sst2"), job(2, "/m/two", "sst2"),
            job(3, "/m/two", "text", failed=True)]  # fmt: skip
    outcomes = {0: outcome({"word": windows(0)}), 1: outcome({"": texts(0)}), 2: outcome({"": texts(1)})}
    rows = rows_of(jobs, outcomes, config())
    show(rows)
    lines = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert [line[0] for line in cells] == [
        "word/ppl", "lm", "loss", "one", "two", "difference", "accuracy", "one", "two", "difference",
        "f1", "one", "two", "difference", "mcc", "one", "two", "difference",
    ]  # fmt: skip
    assert [line[1] for line in cells if line[0] == "two"] == ["failed"] * 4
    expected = outcomes[2].metrics["eval/accuracy"] - outcomes[1].metrics["eval/accuracy"]
    (found,) = (row.difference for row in rows if row.job == 2 and row.metric == "accuracy")
    assert found == pytest.approx(expected)


def test_without_resamples_there_are_values_alone(capsys):
    settings = config()
    settings.evaluation.bootstrap_resamples = 0
    rows = rows_of([job(0, "/m/a", "text"), job(1, "/m/b", "text")],
                   {0: outcome({"word": windows(0)}), 1: outcome({"word": windows(1)})}, settings)  # fmt: skip
    assert all(row.low is row.difference is None for row in rows)
    show(rows)
    assert "[" not in capsys.readouterr().out
