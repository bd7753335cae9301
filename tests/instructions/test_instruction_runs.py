"""train.py and predict.py with instructions: learning, packing, micro batches, layouts, adapters, the template."""

import json

import numpy as np
import pytest
import yaml

from gpt2x import checkpoint
from gpt2x.commands.predict import run as predict
from gpt2x.convert import export_huggingface, load_source
from gpt2x.data.template import load_template
from gpt2x.errors import UserError
from tests.parallel.runs import distance
from tests.test_config import typed
from tests.train.runs import curve, start

WORDS = ["one", "two", "red", "blue", "cat", "dog"]
TEMPLATE = {"with_input": "{instruction} {input} =", "without_input": "{instruction} ="}
MODEL = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=64", "model.dropout=0",
         "trainer.seq_len=64", "hardware.peak_tflops=0.1", "tracker=none", "tokenizer.vocab_size=300"]  # fmt: skip
RUN = ["task=instruction", "task.requires_load=false", "dataset=instructions", "trainer.keep_best=false",
       "trainer.keep_last=9"]  # fmt: skip
STEPS = 4
SHORT = [
    "trainer.sample_prompts=[]",
    "trainer.global_batch_size=8",
    f"trainer.max_steps={STEPS}",
    "trainer.eval_every_steps=2",
]
PACKED, APART = "dataset.packing=true", "dataset.packing=false"

pytestmark = pytest.mark.slow


def write_rows(folder):
    """A word to be said, and an input of zero to ten words that tell nothing."""
    random = np.random.default_rng(0)
    for name, count in (("train", 240), ("val", 24)):
        rows = []
        for _ in range(count):
            word = str(random.choice(WORDS))
            given = " ".join(["la"] * random.integers(0, 11))
            rows.append({"instruction": word, "input": given, "output": f" {word}"})
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


class Runs:
    """Runs on one data set, each made once; `of` gives a run's directory."""

    def __init__(self, folder):
        self.folder, self.found = folder, {}
        write_rows(folder)
        (folder / "template.yaml").write_text(yaml.safe_dump(TEMPLATE), encoding="utf-8")

    def of(self, *overrides):
        if overrides not in self.found:
            outputs = self.folder / f"outputs_{len(self.found)}"
            start("train.py", *MODEL, *RUN, f"dataset.path={self.folder}", f"paths.cache={self.folder}/cache",
                  f"dataset.template={self.folder}/template.yaml", f"paths.outputs={outputs}", *overrides)  # fmt: skip
            (metrics,) = outputs.rglob("metrics.jsonl")
            self.found[overrides] = metrics.parent
        return self.found[overrides]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("instructions"))


@pytest.fixture(scope="module")
def tuned(runs):
    return runs.of(
        PACKED,
        "trainer.sample_prompts=[cat]",
        "trainer.global_batch_size=4",
        "trainer.max_steps=120",
        "optimizer.learning_rate=5e-3",
    )


def test_it_learns_and_its_checkpoint_holds_the_template(tuned):
    assert curve(tuned, "val/loss")[120][0] < 0.3
    saved = checkpoint.open_checkpoint(tuned / "checkpoints" / "step_120")
    stored = yaml.safe_load((saved.tokenizer_dir / "prompt_template.yaml").read_text(encoding="utf-8"))
    assert stored == TEMPLATE
    saved.verify()
    assert "=== step 120 ===\ncat =" in (tuned / "samples.txt").read_text(encoding="utf-8")


def ask(tmp_path, *overrides):
    """predict.py within this process."""
    predict(typed("predict", f"paths.outputs={tmp_path}", "generation.max_new_tokens=8", *overrides))


def test_predict_asks_within_the_template_and_gives_the_response_alone(tuned, tmp_path, capsys):
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
    with pytest.raises(UserError, match="has rows of `instruction`, which a template makes prompts of, and template=n"):
        ask(tmp_path, f"load={tuned}", f"prompts_file={prompts}", "template=null")


def test_the_template_goes_with_an_export(tuned, tmp_path):
    export_huggingface(load_source(tuned), tmp_path / "hf")
    assert (tmp_path / "hf" / "prompt_template.yaml").is_file()


@pytest.mark.parametrize(
    ("packing", "layout"),
    [
        (PACKED, ("parallel=zero2", "trainer.micro_batch_size=2")),
        (APART, ("parallel=zero2", "trainer.micro_batch_size=2")),
        (PACKED, ("parallel=tp2", "parallel.sequence_parallel=true", "model.pad_vocab_multiple=2")),
        (APART, ("parallel=pp2",)),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else value,
)
def test_a_layout_trains_as_one_process(runs, packing, layout):
    found = distance(runs.of(*SHORT, packing, *layout), runs.of(*SHORT, packing), step=STEPS)
    print(found)
    assert found.loss <= 1e-5
    assert found.validation <= 1e-5
    assert found.norm <= 1e-4


def test_adapters_are_trained_and_asked_within_their_template(runs, tuned, tmp_path, capsys):
    adapter = runs.of("lora=r8", f"load={tuned}", PACKED, *SHORT)
    ask(tmp_path, f"load={tuned}", f"adapters=[{adapter}]", "prompts=[cat]")
    assert capsys.readouterr().out.startswith(" cat\n(")
    saved = checkpoint.open_checkpoint(adapter / "checkpoints" / f"step_{STEPS}")
    assert saved.groups() == ["adapter", "optimizer"]
    assert (saved.tokenizer_dir / "prompt_template.yaml").is_file()


def test_losses_are_of_the_response_alone(runs):
    """The first loss, of random weights, is near ln V for both; what counts is a handful of tokens an example."""
    tokens = [curve(runs.of(*SHORT, packing), "train/tokens")[STEPS][0] for packing in (PACKED, APART)]
    assert tokens[1] == STEPS * 8 * 2  # a word and EOS an example, eight examples a step
    assert tokens[0] > 3 * tokens[1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=pydocs"], "dataset=pydocs has no responses, which task=instruction learns; use dataset=alpaca"),
        (["parallel=pp2"], "dataset.packing=true: pipeline stages .* use dataset.packing=false"),
        (["trainer.best_metric=val/accuracy"], "trainer.best_metric=val/accuracy is not known"),
        (["load=null"], "task=instruction starts from trained weights: give load=DIR"),
    ],
)
def test_wrong_configurations(overrides, message):
    with pytest.raises(UserError, match=message):
        typed("train", "task=instruction", "dataset=alpaca", "load=x", *overrides)


def test_the_shipped_template_is_the_default():
    assert typed("train", "task=instruction", "dataset=alpaca", "load=x").dataset.template == "alpaca"
    assert load_template("alpaca", "dataset.template")
