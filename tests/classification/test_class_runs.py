"""train.py, evaluate.py and predict.py with a classifier: learning, resume, early stopping, mistakes."""

import json

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.errors import UserError
from tests.support.configs import typed
from tests.support.decide import refusal
from tests.support.in_process import run
from tests.support.small_runs import curve, small
from tests.support.zoo import paths

KEYS = ("loss", "accuracy", "f1", "mcc")


def test_it_learns_and_says_so(zoo):
    run_dir, out = zoo.classifier.run_dir, zoo.classifier.stdout
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


def test_evaluate(zoo, tmp_path):
    run_dir, texts = zoo.classifier.run_dir, zoo.classifier.folder / "texts"
    run("evaluate", f"load={run_dir}", "dataset=labelled_text", f"dataset.path={texts}", "tracker=none",
        *paths(tmp_path), "evaluation.seq_len=48", f"output={tmp_path}/results.json")  # fmt: skip
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    results, last = report["results"], curve(run_dir, *(f"val/{key}" for key in KEYS))[40]
    for key, value in zip(KEYS, last, strict=True):
        assert results[key]["value"] == pytest.approx(value, rel=1e-5)
        assert results[key]["low"] <= results[key]["value"] <= results[key]["high"]
    assert np.sum(results["confusion"]) == results["num_texts"] == 33
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert np.mean([row["label"] == row["predicted"] for row in rows]) == pytest.approx(results["accuracy"]["value"])
    assert (tmp_path / "confusion.png").is_file()


def test_predict(zoo, tmp_path):
    prompts = json.dumps(["the cat sat glad", "on mats sad", "then fine"])
    run("predict", f"load={zoo.classifier.run_dir}", f"prompts={prompts}", "generation.batch_size=2",
        f"output={tmp_path}/out.jsonl", f"paths.outputs={tmp_path}")  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["label"] for row in rows] == ["glad", "sad", "fine"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in rows)


def test_resume_is_exact(zoo, tmp_path):
    branch = zoo.classifier.again(tmp_path, f"resume={zoo.classifier.checkpoint(20)}").run_dir
    keys = ("train/loss", "val/loss")
    assert curve(branch, *keys) == curve(zoo.classifier.run_dir, *keys)


def test_early_stopping_and_a_loaded_language_model(zoo, tmp_path):
    """The head is fresh, and a rate of nearly nothing brings no gain after the first evaluation."""
    before = checkpoint.open_checkpoint(zoo.plain.checkpoint(16))
    early = [f"load={before.path}", "model.max_seq_len=32", "trainer.seq_len=32", "optimizer.learning_rate=1e-12",
             "trainer.eval_every_steps=2", "trainer.early_stopping_patience=2"]  # fmt: skip
    done = zoo.classifier.again(tmp_path, *early)
    assert "stopped early at step 6: 2 evaluations in a row without a better val/accuracy" in done.stdout
    assert max(curve(done.run_dir)) == 6
    saved = checkpoint.list_checkpoints(done.run_dir)
    assert [path.name for path in saved] == ["step_2", "step_6"]
    after = checkpoint.open_checkpoint(saved[0])
    assert np.abs(before.tensor("weights", "wte.weight") - after.tensor("weights", "wte.weight")).max() < 1e-6


def test_a_classifier_is_no_language_model(zoo, tmp_path):
    options = ["model.max_seq_len=64", "task=finetune", f"load={zoo.classifier.run_dir}"]
    assert "holds a classifier (fine, glad, sad)" in refusal("train", *small(tmp_path), *options)


@pytest.mark.run
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
