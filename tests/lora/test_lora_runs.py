"""train.py with lora=, and its checkpoints: adapters alone, resumed, evaluated, merged, exported."""

import json
import shutil

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.convert import load_source
from gpt2x.errors import UserError
from gpt2x.lora.open import open_adapter
from tests.commands import convert as main
from tests.support.decide import refusal
from tests.support.in_process import run
from tests.support.small_runs import curve, small


def evaluate(zoo, directory, *overrides: str):
    paths = [f"paths.outputs={directory}/inference", f"paths.cache={zoo.lora.folder}/cache", "tracker=none"]
    data = ["dataset=text", f"dataset.path={zoo.lora.folder}/corpus.txt"]
    return ["evaluate", *paths, *data, f"load={zoo.plain.run_dir}", *overrides]


def test_checkpoints_hold_adapters_alone_and_name_their_base(zoo):
    adapter_dir, base_dir = zoo.lora.run_dir, zoo.plain.run_dir
    saved = checkpoint.open_checkpoint(zoo.lora.checkpoint(6))
    assert saved.groups() == ["adapter", "optimizer"]
    names = set(saved.names("adapter"))
    assert names == {f"h.{layer}.attn.{part}.lora_{factor}" for layer in (0, 1) for part in "qv" for factor in "AB"}
    assert set(saved.names("optimizer")) == {f"{kind}.{name}" for kind in ("mean", "square") for name in names}
    base = checkpoint.list_checkpoints(base_dir)[-1]
    assert saved.loop_state["base_path"] == str(base)
    with pytest.raises(UserError, match=r"is an adapter and holds no model\. Give its base") as caught:
        load_source(adapter_dir)
    assert f"load={base} 'adapters=[" in str(caught.value)
    with pytest.raises(UserError, match="is a whole model, not an adapter"):
        open_adapter(base_dir)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(zoo, tmp_path):
    stopped = zoo.lora.again(tmp_path, "trainer.stop_after_steps=3").run_dir
    options = [option for option in zoo.lora.options_at(tmp_path) if not option.startswith("load=")]
    assert run("train", *options, "resume=auto").run_dir == stopped
    assert curve(stopped) == curve(zoo.lora.run_dir)
    mine, theirs = (
        checkpoint.open_checkpoint(path) for path in (stopped / "checkpoints/step_6", zoo.lora.checkpoint(6))
    )
    for group in ("adapter", "optimizer"):
        for name in theirs.names(group):
            assert np.array_equal(mine.tensor(group, name), theirs.tensor(group, name))


@pytest.fixture(scope="module")
def exported(zoo, tmp_path_factory):
    """A folder with the adapter in PEFT's form, and with the base into which it is merged."""
    folder = tmp_path_factory.mktemp("exported")
    adapter, base = str(zoo.lora.run_dir), str(zoo.plain.run_dir)
    assert main(["--to", "peft", "--output", str(folder / "peft"), adapter]) == 0
    assert main(["--to", "gpt2x", "--output", str(folder / "merged"), "--merge", adapter, base]) == 0
    assert main(["--to", "hf", "--output", str(folder / "other"), "--merge", adapter, base]) == 0
    return folder


def test_a_base_that_changed_is_refused(zoo, exported, tmp_path):
    last = zoo.lora.checkpoint(3)
    assert "frozen weights" in refusal("train", *zoo.lora.options, f"resume={last}", f"load={exported}/other")
    adapter = f"adapters=[{zoo.lora.run_dir}]"
    message = refusal(*evaluate(zoo, tmp_path, f"load={exported}/other", adapter))
    assert "trained beside different weights" in message
    assert f"load={zoo.plain.run_dir}" in message
    assert "lora.rank: 8 -> 4" in refusal("train", *zoo.lora.options, f"resume={last}", "lora.rank=4")


def test_adapters_are_evaluated_in_turn_as_training_saw_them(zoo, exported, tmp_path):
    options = ["evaluation.protocols=[reference]", f"output={tmp_path}/found.json"]
    run(*evaluate(zoo, tmp_path, f"adapters=[{zoo.lora.checkpoint(3)},{exported}/peft]", *options))
    results = json.loads((tmp_path / "found.json").read_text())["results"]
    assert list(results) == [zoo.lora.run_dir.name, "peft"]
    first, second = (results[name]["reference"]["loss"] for name in results)
    assert first != second
    run(*evaluate(zoo, tmp_path, f"load={exported}/merged", *options))
    merged = json.loads((tmp_path / "found.json").read_text())["results"]["reference"]["loss"]
    assert merged == pytest.approx(second, abs=1e-6)
    unmerge = ["--unmerge", str(zoo.lora.run_dir), str(exported / "merged")]
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "back"), *unmerge]) == 0
    back, base = (dict(load_source(path).weights()) for path in (tmp_path / "back", zoo.plain.run_dir))
    assert max(abs(back[name] - base[name]).max() for name in base) <= 1e-6


def test_text_is_completed_by_the_adapter_that_is_chosen(zoo, tmp_path):
    shutil.copytree(zoo.lora.checkpoint(3), tmp_path / "early")
    name = zoo.lora.run_dir.name
    both = ["predict", f"load={zoo.plain.run_dir}", f"adapters=[{zoo.lora.run_dir},{tmp_path}/early]", "prompts=[the]",
            f"paths.outputs={tmp_path}", "generation.max_new_tokens=4"]  # fmt: skip
    assert "1 completion" in run(*both, f"adapter={name}").stderr
    assert f"adapter=null is not one of adapters=. Give adapter= one of: {name}, early." in refusal(*both)


def test_training_continues_from_an_adapter_of_peft(zoo, exported, tmp_path):
    options = [*small(zoo.lora.folder), f"paths.outputs={tmp_path}/outputs", f"load={zoo.plain.run_dir}",
               f"adapters=[{exported}/peft]", "task=finetune", "trainer.max_steps=1", "lora=r8",
               "lora.targets=[c_attn]"]  # fmt: skip
    assert "rank [16] at scale [2.0] on attn.c_attn. Give its lora.rank" in refusal("train", *options)
    changes = ["lora.rank=16", "lora.alpha=32", "optimizer.learning_rate=1e-12"]
    ours = open_adapter(run("train", *options, *changes).run_dir).factors()
    for name, value in open_adapter(exported / "peft").factors().items():
        np.testing.assert_allclose(ours[name], value, atol=1e-6)
