"""Adapters of classifiers: the head is trained and kept with them, and PEFT has it too."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.config.options import known_models
from gpt2x.convert import load_source
from gpt2x.errors import UserError
from gpt2x.lora.adapter import adapted_model
from gpt2x.lora.merge import merged
from gpt2x.lora.open import open_adapter
from gpt2x.model.gpt2 import initial_weights, load_weights
from tests.commands import convert as main
from tests.support.adapted import lazy
from tests.support.decide import refusal
from tests.support.in_process import run
from tests.support.models import CPU, random_ids
from tests.support.peft import TRAINED, logits_by_peft, torch_classifier
from tests.support.processes import start
from tests.support.small_runs import curve, run_dirs, small
from tests.support.zoo import paths

pytestmark = [
    pytest.mark.run,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # PEFT's use
]
LORA = ["lora=r8", "lora.targets=[q,v,c_fc]", "lora.alpha=32", "optimizer.learning_rate=1e-2"]


def log_probabilities(model, weights, ids):
    """Ours, of rows without padding."""
    from gpt2x.generate.class_scorer import ClassScorer
    from gpt2x.model.classifier import Classifier
    from gpt2x.runtime.device import set_up_device

    set_up_device(CPU)
    net = Classifier(replace(model, dropout=0.0), CPU)
    load_weights(net, dict(weights))
    return ClassScorer(net, len(ids), ids.shape[1]).score(ids, np.ones_like(ids))


def normalized(logits):
    return logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))


@pytest.mark.parity
@pytest.mark.parametrize("name", [name for name, labels in TRAINED.items() if labels])
def test_a_trained_classifier_computes_what_peft_computes(shared_data, name):
    model, directory = known_models()["gpt2_small"], shared_data / "adapters" / name
    weights, ids = dict(initial_weights(model, 0)), np.maximum(random_ids(model, (3, 32)), 1)  # 0 pads
    adapter = open_adapter(directory)
    adapted = adapted_model(model, [adapter], "x")
    assert adapted.labels == [f"LABEL_{i}" for i in range(TRAINED[name])]
    ours = log_probabilities(adapted, merged(lazy(weights), adapter), ids)
    theirs = torch_classifier(model, weights, TRAINED[name])
    expected = normalized(logits_by_peft(theirs, directory, ids))
    print(name, abs(ours - expected).max())
    assert abs(ours - expected).max() <= 1e-4
    assert abs(expected - np.log(1 / TRAINED[name])).max() > 1e-2


@pytest.fixture(scope="module")
def work(zoo, tmp_path_factory):
    """A folder, a language model, the run of an adapter that makes a classifier of it, and what that printed."""
    folder, texts = tmp_path_factory.mktemp("heads"), zoo.classifier.folder / "texts"
    corpus = "\n".join(json.loads(line)["text"] for line in (texts / "train.jsonl").open())
    (folder / "corpus.txt").write_text(corpus * 4, encoding="utf-8")
    base = run("train", *small(folder), "model.max_seq_len=64", "trainer.seq_len=48", "trainer.max_steps=60",
               "model.dropout=0", "trainer.micro_batch_size=8", "optimizer.learning_rate=5e-3").run_dir  # fmt: skip
    done = zoo.classifier.again(folder / "adapted", *LORA, f"load={base}", "trainer.checkpoint_every_steps=10")
    return folder, base, done.run_dir, done.stdout


def test_it_learns_and_keeps_the_head_with_the_adapters(work):
    _, base, run_dir, out = work
    accuracy = curve(run_dir, "val/accuracy")
    assert accuracy[40][0] > 0.6  # the most frequent class has 0.36; frozen embeddings of 32 values learn no more
    saved = checkpoint.open_checkpoint(run_dir / "checkpoints" / "step_40")
    assert saved.groups() == ["adapter", "optimizer"]
    assert saved.shape("adapter", "score.weight") == (3, 32)
    assert "mean.score.weight" in saved.names("optimizer")
    assert not any(name.startswith("wte") for name in saved.names("adapter"))
    assert f"{2 * (2 * (32 * 8 * 2) + 8 * (32 + 128)) + 3 * 32:,} (" in out  # two thirds of c_attn and c_fc, two layers
    adapter = open_adapter(run_dir)
    assert adapter.labels == ["fine", "glad", "sad"]
    assert adapter.base == str(checkpoint.list_checkpoints(base)[-1])


@pytest.mark.launch
def test_resumed_and_by_two_processes_it_is_the_same(zoo, work, tmp_path):
    folder, base, run_dir, _ = work
    ten = run_dir / "checkpoints" / "step_10"
    shutil.copytree(folder / "adapted" / "outputs", tmp_path / "outputs")
    killed = tmp_path / run_dir.relative_to(folder / "adapted")
    for step in (20, 30, 40):
        shutil.rmtree(killed / "checkpoints" / f"step_{step}")
    zoo.classifier.again(tmp_path, *LORA, "resume=auto", "trainer.checkpoint_every_steps=10")
    assert run_dirs(tmp_path) == [killed], "auto continues in the run's own directory"
    assert (killed / "metrics.1.jsonl").is_file(), "the steps after its checkpoint are repeated"
    assert curve(killed) == curve(run_dir)
    start("train.py", *zoo.classifier.options_at(tmp_path / "dp2"), *LORA, f"load={base}", "parallel=dp2",
          "trainer.stop_after_steps=10")  # fmt: skip
    (parallel,) = run_dirs(tmp_path / "dp2")
    ours, theirs = (open_adapter(path) for path in (parallel, ten))
    assert abs(ours.head - theirs.head).max() <= 1e-5
    assert ours.head.std() > 0.02
    for name, value in theirs.factors().items():
        assert abs(ours.factors()[name] - value).max() <= 1e-5


def test_it_is_evaluated_merged_and_exported_as_training_saw_it(zoo, work, tmp_path):
    _, base, run_dir, _ = work
    data = ["dataset=labelled_text", "tracker=none", f"dataset.path={zoo.classifier.folder}/texts", *paths(tmp_path),
            "evaluation.seq_len=48"]  # fmt: skip
    last = curve(run_dir, "val/loss", "val/accuracy")[40]
    assert main(["--to", "peft", "--output", str(tmp_path / "peft"), str(run_dir)]) == 0
    assert main(["--to", "hf", "--output", str(tmp_path / "hf"), "--merge", str(run_dir), str(base)]) == 0
    found = []
    for model in ([f"load={base}", f"adapters=[{run_dir},{tmp_path}/peft]"], [f"load={tmp_path}/hf"]):
        run("evaluate", *model, *data, f"output={tmp_path}/results.json")
        results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["results"]
        found += results.values() if "adapters" in model[-1] else [results]
    assert len(found) == 3
    for results in found:
        assert [results[key]["value"] for key in ("loss", "accuracy")] == pytest.approx(last, rel=1e-5)
        assert set(results["classes"]) == {"fine", "glad", "sad"}
    prompts = json.dumps(["the cat sat glad", "on mats sad", "then fine"])
    probabilities = []
    for number, model in enumerate([[f"load={base}", f"adapters=[{run_dir}]"], [f"load={tmp_path}/hf"]]):
        output = tmp_path / f"{number}.jsonl"
        run("predict", *model, f"prompts={prompts}", f"paths.outputs={tmp_path}", f"output={output}")
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        probabilities.append([row["probabilities"][label] for row in rows for label in ("fine", "glad", "sad")])
    assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)
    assert max(probabilities[0]) > 0.4


@pytest.mark.parity
def test_peft_computes_what_the_exported_one_computes(work, tmp_path):
    _, base, run_dir, _ = work
    assert main(["--to", "peft", "--output", str(tmp_path / "peft"), str(run_dir)]) == 0
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    source, adapter = load_source(base), open_adapter(run_dir)
    ids = np.maximum(random_ids(source.model, (4, 20)), 1)
    adapted = adapted_model(source.model, [adapter], "x")
    ours = log_probabilities(adapted, merged(source.weights(), adapter), ids)
    theirs = torch_classifier(source.model, dict(source.weights()), 3)
    assert abs(ours - normalized(logits_by_peft(theirs, tmp_path / "peft", ids))).max() <= 1e-5


def test_what_does_not_belong_together_is_refused(zoo, work, tmp_path, shared_data):
    folder, base, run_dir, _ = work
    with pytest.raises(UserError, match="make different models of it"):
        adapted_model(known_models()["gpt2_small"],
                      [open_adapter(shared_data / "adapters" / name) for name in TRAINED], "x")  # fmt: skip
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "whole"), "--merge", str(run_dir), str(base)]) == 0
    done = [str(tmp_path / "back"), "--unmerge", str(run_dir), str(tmp_path / "whole")]
    assert main(["--to", "gpt2x", "--output", *done]) == 2
    language = ["task=finetune", "dataset=text", f"dataset.path={folder}/corpus.txt", f"adapters=[{run_dir}]"]
    wrong = [*zoo.classifier.options_at(tmp_path), *LORA, f"load={base}", *language, "trainer.best_metric=val/loss"]
    message = refusal("train", *wrong)
    assert "has a head for fine, glad, sad, but task=finetune" in message
    assert "language modeling" in message
