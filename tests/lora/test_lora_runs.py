"""train.py with lora=, and its checkpoints: adapters alone, resumed, evaluated, merged, exported."""

import json
import shutil

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.convert import load_source
from gpt2x.convert.__main__ import main
from gpt2x.errors import UserError
from gpt2x.lora.adapter import open_adapter
from tests.train import runs

LORA = ("task=finetune", "lora=r8", "trainer.max_steps=6", "trainer.eval_every_steps=3", "trainer.keep_last=9",
        "trainer.checkpoint_every_steps=3")  # fmt: skip


class Work:
    """A base, and a run of 6 steps that adapts it; under `root`."""

    def __init__(self, root):
        self.root = root
        runs.train(root, "trainer.max_steps=2")
        (self.base,) = runs.run_dirs(root)
        runs.train(root, *LORA, f"load={self.base}")
        self.adapter = next(path for path in runs.run_dirs(root) if path != self.base)

    def inference(self, script: str, *overrides: str):
        paths = [f"paths.outputs={self.root}/inference", f"paths.cache={self.root}/cache", "tracker=none"]
        if script == "evaluate.py":
            paths += ["dataset=text", f"dataset.path={self.root}/corpus.txt"]
        return runs.start(script, *paths, f"load={self.base}", *overrides, check=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return Work(tmp_path_factory.mktemp("lora"))


def test_checkpoints_hold_adapters_alone_and_name_their_base(work):
    saved = checkpoint.open_checkpoint(work.adapter / "checkpoints" / "step_6")
    assert saved.groups() == ["adapter", "optimizer"]
    names = set(saved.names("adapter"))
    assert names == {f"h.{layer}.attn.{part}.lora_{factor}" for layer in (0, 1) for part in "qv" for factor in "AB"}
    assert set(saved.names("optimizer")) == {f"{kind}.{name}" for kind in ("mean", "square") for name in names}
    base = checkpoint.list_checkpoints(work.base)[-1]
    assert saved.loop_state["base_path"] == str(base)
    with pytest.raises(UserError, match="is an adapter and holds no model: give its base") as caught:
        load_source(work.adapter)
    assert f"load={base} 'adapters=[" in str(caught.value)
    with pytest.raises(UserError, match="is a whole model, no adapter"):
        open_adapter(work.base)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(work, tmp_path):
    outputs = f"paths.outputs={tmp_path}"
    runs.train(work.root, *LORA, f"load={work.base}", outputs, "trainer.stop_after_steps=3")
    runs.train(work.root, *LORA, outputs, "resume=auto")
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert runs.curve(metrics.parent) == runs.curve(work.adapter)
    mine, theirs = (
        checkpoint.open_checkpoint(path / "checkpoints" / "step_6") for path in (metrics.parent, work.adapter)
    )
    for group in ("adapter", "optimizer"):
        for name in theirs.names(group):
            assert np.array_equal(mine.tensor(group, name), theirs.tensor(group, name))


def test_a_base_that_changed_is_refused(work, tmp_path):
    weights = main(["--to", "hf", "--output", str(tmp_path / "other"), "--merge", str(work.adapter), str(work.base)])
    assert weights == 0
    last = work.adapter / "checkpoints" / "step_3"
    done = runs.train(work.root, *LORA, f"resume={last}", f"load={tmp_path}/other", check=False)
    assert done.returncode == 2
    assert "frozen weights" in done.stderr
    done = work.inference("evaluate.py", f"load={tmp_path}/other", f"adapters=[{work.adapter}]")
    assert done.returncode == 2
    assert "trained beside other weights" in done.stderr
    assert f"load={work.base}" in done.stderr
    done = runs.train(work.root, *LORA, f"resume={last}", "lora.rank=4", check=False)
    assert "lora.rank: 8 -> 4" in done.stderr


def test_adapters_are_evaluated_in_turn_as_training_saw_them(work, tmp_path):
    assert main(["--to", "peft", "--output", str(tmp_path / "peft"), str(work.adapter)]) == 0
    options = ["evaluation.protocols=[reference]", f"output={tmp_path}/found.json"]
    done = work.inference("evaluate.py", f"adapters=[{work.adapter}/checkpoints/step_3,{tmp_path}/peft]", *options)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert list(results) == [work.adapter.name, "peft"]
    first, second = (results[name]["reference"]["loss"] for name in results)
    assert first != second
    merged = tmp_path / "merged"
    assert main(["--to", "gpt2x", "--output", str(merged), "--merge", str(work.adapter), str(work.base)]) == 0
    done = work.inference("evaluate.py", f"load={merged}", *options)
    alone = json.loads((tmp_path / "found.json").read_text())["results"]["reference"]["loss"]
    assert alone == pytest.approx(second, abs=1e-6)
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "back"), "--unmerge", str(work.adapter), str(merged)]) == 0
    back, base = (dict(load_source(path).weights()) for path in (tmp_path / "back", work.base))
    assert max(abs(back[name] - base[name]).max() for name in base) <= 1e-6


def test_text_is_completed_by_the_adapter_that_is_chosen(work, tmp_path):
    shutil.copytree(work.adapter / "checkpoints" / "step_3", tmp_path / "early")
    both = f"adapters=[{work.adapter},{tmp_path}/early]"
    options = ["prompts=[the]", "generation.max_new_tokens=4"]
    done = work.inference("predict.py", both, f"adapter={work.adapter.name}", *options)
    assert done.returncode == 0, done.stderr
    done = work.inference("predict.py", both, *options)
    assert done.returncode == 2
    assert f"adapter=null is none of adapters=; give adapter= one of: {work.adapter.name}, early" in done.stderr


def test_training_goes_on_from_an_adapter_of_peft(work, tmp_path):
    assert main(["--to", "peft", "--output", str(tmp_path / "peft"), str(work.adapter)]) == 0
    options = [f"load={work.base}", f"adapters=[{tmp_path}/peft]", "task=finetune", "trainer.max_steps=1",
               f"paths.outputs={tmp_path}/outputs", "lora=r8", "lora.targets=[c_attn]"]  # fmt: skip
    done = runs.train(work.root, *options, check=False)
    assert done.returncode == 2
    assert "rank [16] at scale [2.0] on attn.c_attn; give lora.rank" in done.stderr
    runs.train(work.root, *options, "lora.rank=16", "lora.alpha=32", "optimizer.learning_rate=1e-12")
    (metrics,) = (tmp_path / "outputs").rglob("metrics.jsonl")
    ours = open_adapter(metrics.parent).factors()
    for name, value in open_adapter(tmp_path / "peft").factors().items():
        np.testing.assert_allclose(ours[name], value, atol=1e-6)
