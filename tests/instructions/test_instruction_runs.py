"""train.py and predict.py with instructions: learning, packing, adapters, the template."""

import json

import pytest
import yaml

from gpt2x import checkpoint
from gpt2x.commands.entry import run_in_process
from gpt2x.convert import export_huggingface, load_source
from gpt2x.data.template import load_template
from gpt2x.errors import UserError
from tests.support.configs import typed
from tests.support.small_runs import curve
from tests.support.zoo import TEMPLATE

STEPS = 4
SHORT = ["trainer.sample_prompts=[]", "trainer.global_batch_size=8", f"trainer.max_steps={STEPS}",
         "trainer.eval_every_steps=2", "optimizer.learning_rate=6e-4"]  # fmt: skip


def test_it_learns_and_its_checkpoint_holds_the_template(zoo):
    tuned = zoo.instructions.run_dir
    assert curve(tuned, "val/loss")[120][0] < 0.3
    saved = checkpoint.open_checkpoint(tuned / "checkpoints" / "step_120")
    stored = yaml.safe_load((saved.tokenizer_dir / "prompt_template.yaml").read_text(encoding="utf-8"))
    assert stored == TEMPLATE
    saved.verify()
    assert "=== step 120 ===\ncat =" in (tuned / "samples.txt").read_text(encoding="utf-8")


def ask(tmp_path, *overrides):
    """predict.py within this process."""
    config = typed("predict", f"paths.outputs={tmp_path}", "generation.max_new_tokens=8", *overrides)
    run_in_process("predict", config, tmp_path)


def test_predict_asks_within_the_template_and_gives_the_response_alone(zoo, tmp_path, capsys):
    tuned = zoo.instructions.run_dir
    rows = [{"instruction": "red", "input": "la"}, {"instruction": "cat", "input": "la la la"}, {"instruction": "blue"}]
    prompts = tmp_path / "asked.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    ask(tmp_path, f"load={tuned}", f"prompts_file={prompts}", f"output={tmp_path}/out.jsonl")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(a["instruction"], a["input"], a["output"]) for a in answers] == [
        ("red", "la", " red"), ("cat", "la la la", " cat"), ("blue", "", " blue")
    ]  # fmt: skip
    capsys.readouterr()
    ask(tmp_path, f"load={tuned}", "prompts=[cat]")
    assert capsys.readouterr().out.startswith(" cat\n(")
    ask(tmp_path, f"load={tuned}", 'prompts=["cat la ="]', "template=null")
    assert capsys.readouterr().out.startswith("cat la = cat\n(")
    with pytest.raises(UserError, match="has rows of `instruction`, which need a template, and template=n"):
        ask(tmp_path, f"load={tuned}", f"prompts_file={prompts}", "template=null")


def test_the_template_goes_with_an_export(zoo, tmp_path):
    export_huggingface(load_source(zoo.instructions.run_dir), tmp_path / "hf")
    assert (tmp_path / "hf" / "prompt_template.yaml").is_file()


def test_adapters_are_trained_and_asked_within_their_template(zoo, tmp_path, capsys):
    tuned = zoo.instructions.run_dir
    adapter = zoo.instructions.again(tmp_path, "lora=r8", f"load={tuned}", *SHORT).run_dir
    ask(tmp_path, f"load={tuned}", f"adapters=[{adapter}]", "prompts=[cat]")
    assert capsys.readouterr().out.startswith(" cat\n(")
    saved = checkpoint.open_checkpoint(adapter / "checkpoints" / f"step_{STEPS}")
    assert saved.groups() == ["adapter", "optimizer"]
    assert (saved.tokenizer_dir / "prompt_template.yaml").is_file()


def test_losses_are_of_the_response_alone(zoo, tmp_path):
    """The first loss, of random weights, is near ln V for both; what counts is a handful of tokens per example."""
    runs = [zoo.instructions.run_dir, zoo.instructions.again(tmp_path, *SHORT, "dataset.packing=false").run_dir]
    packed, apart = (curve(path, "train/tokens", "train/loss") for path in runs)
    assert packed[1][1] == pytest.approx(apart[1][1], abs=0.2)
    assert apart[STEPS][0] == STEPS * 8 * 2  # a word and EOS per example, eight examples per step
    assert packed[STEPS][0] > 3 * STEPS * 4 * 2  # several examples in each of four rows


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=pydocs"], "dataset=pydocs has no responses, which task=instruction learns; use dataset=alpaca"),
        (["trainer.best_metric=val/accuracy"], "trainer.best_metric=val/accuracy does not exist"),
        (["load=null"], "task=instruction starts from trained weights; give load=DIR"),
    ],
)
def test_wrong_configurations(overrides, message):
    with pytest.raises(UserError, match=message):
        typed("train", "task=instruction", "dataset=alpaca", "load=x", *overrides)


def test_the_shipped_template_is_the_default():
    assert typed("train", "task=instruction", "dataset=alpaca", "load=x").dataset.template == "alpaca"
    assert load_template("alpaca", "dataset.template")
