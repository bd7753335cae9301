"""train.py, evaluate.py and predict.py with a classifier: learning, layouts, resume, early stopping, mistakes."""

import json
from pathlib import Path

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.errors import UserError
from tests.test_config import typed
from tests.train.runs import curve, run_dirs, start

MODEL = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=64", "model.dropout=0",
         "trainer.seq_len=48", "tokenizer.vocab_size=300", "hardware.peak_tflops=0.1", "tracker=none"]  # fmt: skip
RUN = ["task=classification", "task.requires_load=false", "dataset=labelled_text", "trainer.global_batch_size=8",
       "trainer.micro_batch_size=4", "optimizer.learning_rate=5e-3", "trainer.max_steps=40",
       "trainer.eval_every_steps=10", "trainer.checkpoint_every_steps=20", "trainer.keep_last=9"]  # fmt: skip

pytestmark = pytest.mark.slow


def write_texts(folder: Path) -> Path:
    """Texts of random words, whose class is the word they end with."""
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mats", "green", "hill", "and", "then"]
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 160), ("dev", 33)):
        rows = []
        for _ in range(count):
            text = " ".join(random.choice(words, random.integers(1, 20)))
            label = str(random.choice(["sad", "fine", "glad"]))
            rows.append(json.dumps({"text": f"{text} {label}", "label": label}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def options(folder: Path, outputs: str) -> list[str]:
    return [f"paths.outputs={folder}/{outputs}/outputs", f"paths.cache={folder}/cache",
            f"dataset.path={folder}/texts"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run `single`, and its run directory."""
    folder = tmp_path_factory.mktemp("classifier")
    write_texts(folder / "texts")
    done = start("train.py", *MODEL, *RUN, *options(folder, "single"), "trainer.best_metric=val/accuracy")
    (run_dir,) = run_dirs(folder / "single")
    return folder, run_dir, done.stdout


def test_it_learns_and_says_so(trained):
    _, run_dir, out = trained
    accuracies = curve(run_dir, "val/accuracy", "val/loss", "val/f1", "val/mcc", "train/texts")
    assert accuracies[40][0] > 0.9
    assert accuracies[40][4] == 320
    best = max(found[0] for found in accuracies.values() if found[0] is not None)
    assert f"best val/accuracy {best:.4f}" in out
    assert "the most frequent class has accuracy" in out
    assert "ppl" not in out
    saved = checkpoint.open_checkpoint(run_dir / "checkpoints" / "step_40")
    assert saved.model.labels == ["fine", "glad", "sad"]
    assert saved.shape("weights", "score.weight") == (3, 32)


def test_evaluate(trained, tmp_path):
    folder, run_dir, _ = trained
    start("evaluate.py", f"load={run_dir}", "dataset=labelled_text", "tracker=none", *options(folder, "evaluate"),
          "evaluation.seq_len=48", f"output={tmp_path}/results.json")  # fmt: skip
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results, last = report["results"], curve(run_dir, "val/loss", "val/accuracy", "val/f1", "val/mcc")[40]
    for key, value in zip(("loss", "accuracy", "f1", "mcc"), last, strict=True):
        assert results[key]["value"] == pytest.approx(value, rel=1e-5)
        assert results[key]["low"] <= results[key]["value"] <= results[key]["high"]
    assert np.sum(results["confusion"]) == results["num_texts"] == 33
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(results["accuracy"]["value"])
    assert (tmp_path / "confusion.png").is_file()


def test_predict(trained, tmp_path):
    _, run_dir, _ = trained
    prompts = json.dumps(["the cat sat glad", "on mats sad", "then fine"])
    start("predict.py", f"load={run_dir}", f"prompts={prompts}", "generation.batch_size=2",
          f"output={tmp_path}/out.jsonl", f"paths.outputs={tmp_path}")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows] == ["glad", "sad", "fine"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


@pytest.mark.parametrize("layout", ["dp2", "zero2"])
def test_data_layouts_equal_one_process(trained, layout):
    folder, run_dir, _ = trained
    changes = ["trainer.best_metric=val/accuracy", f"parallel={layout}"]
    start("train.py", *MODEL, *RUN, *options(folder, layout), *changes)
    (other,) = run_dirs(folder / layout)
    keys = ("train/loss", "train/grad_norm", "train/texts", "val/loss", "val/mcc")
    mine, theirs = curve(other, *keys), curve(run_dir, *keys)
    for step in range(1, 11):
        assert mine[step][:3] == pytest.approx(theirs[step][:3], rel=1e-4), step
    assert mine[10][3:] == pytest.approx(theirs[10][3:], rel=1e-3)


def test_resume_is_exact(trained):
    folder, run_dir, _ = trained
    begun = [*MODEL, *RUN, *options(folder, "resumed"), "trainer.best_metric=val/accuracy"]
    start("train.py", *begun, "trainer.stop_after_steps=20")
    start("train.py", *begun, "resume=auto")
    (other,) = run_dirs(folder / "resumed")
    assert curve(other, "train/loss", "val/loss") == curve(run_dir, "train/loss", "val/loss")


def test_early_stopping_and_a_loaded_language_model(trained):
    """The head is fresh, and a rate of nearly nothing brings no gain after the first evaluation."""
    folder, _, _ = trained
    start("train.py", *MODEL, "dataset=text", f"dataset.path={folder}/texts", "trainer.max_steps=3",
          f"paths.outputs={folder}/lm/outputs", f"paths.cache={folder}/cache", "trainer.global_batch_size=4",
          "trainer.sample_prompts=[]")  # fmt: skip
    (lm,) = run_dirs(folder / "lm")
    run = [*MODEL, *RUN, *options(folder, "early"), f"load={lm}"]
    done = start("train.py", *run, "optimizer.learning_rate=1e-12", "trainer.eval_every_steps=2",
                 "trainer.best_metric=val/accuracy", "trainer.early_stopping_patience=2")  # fmt: skip
    (run_dir,) = run_dirs(folder / "early")
    assert "stopped early at step 6: 2 evaluations in a row without a better val/accuracy" in done.stdout
    assert max(curve(run_dir)) == 6
    assert [path.name for path in checkpoint.list_checkpoints(run_dir)] == ["step_2", "step_6"]
    before, after = (
        checkpoint.open_checkpoint(next((path / "checkpoints").iterdir())).tensor("weights", "wte.weight")
        for path in (lm, run_dir)
    )
    assert np.abs(before - after).max() < 1e-6


def test_a_classifier_is_no_language_model(trained):
    folder, run_dir, _ = trained
    done = start("train.py", *MODEL, "task=finetune", f"load={run_dir}", "dataset=text",
                 f"dataset.path={folder}/texts", f"paths.outputs={folder}/x", f"paths.cache={folder}/cache",
                 check=False)  # fmt: skip
    assert done.returncode == 2
    assert "holds a classifier (fine, glad, sad)" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["dataset=pydocs"], ["dataset=pydocs has no labels", "dataset=sst2"]),
        (["dataset=sst2", "parallel=tp2"], ["parallel=tp2", "data layouts"]),
        (["dataset=sst2", "parallel=pp2"], ["parallel=pp2", "data layouts"]),
        (["dataset=sst2", "trainer.best_metric=val/ppl"], ["trainer.best_metric=val/ppl", "val/mcc"]),
        (
            ["dataset=sst2", "trainer.early_stopping_patience=2", "trainer.eval_every_steps=null"],
            ["trainer.early_stopping_patience=2", "trainer.eval_every_steps=STEPS"],
        ),
    ],
)
def test_mistakes(overrides, parts):
    with pytest.raises(UserError) as caught:
        typed("train", "task=classification", "load=x", *overrides)
    for part in parts:
        assert part in str(caught.value)
