"""train.py with trainer.frozen, optimizer.layer_decay and tokenizer.extend: checkpoints, resume, exports, refusals."""

import dataclasses

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.config.files import load_config
from gpt2x.config.patterns import trained_tensors
from gpt2x.config.rules import validate_train
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.model import stats
from gpt2x.tasks.registry import task_of
from gpt2x.train.decision.model import check_added_rows
from gpt2x.train.decision.source import check_finetuning, check_frozen
from tests.commands import convert as main
from tests.support.decide import refusal
from tests.support.in_process import run
from tests.support.models import tiny_model
from tests.support.small_runs import curve
from tests.support.zoo import Run

NAMES = list(stats.tensor_shapes(tiny_model()))


# ---- which tensors


@pytest.mark.parametrize(
    ("frozen", "gone"),
    [
        (["wte.weight"], ["wte.weight"]),
        (["h.[0-3].*", "ln_f.*"], [name for name in NAMES if name.startswith(("h.", "ln_f"))]),
        (["ln_1.*"], [name for name in NAMES if ".ln_1." in name]),
        (["bias"], [name for name in NAMES if name.endswith("bias")]),
        ([], []),
    ],
    ids=str,
)
def test_patterns_fit_as_lora_targets_do(frozen, gone):
    assert gone == [name for name in NAMES if name not in trained_tensors(frozen, NAMES)]


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (["wte"], r"trainer.frozen=\[wte\]: 'wte' matches no tensor; did you mean 'wte.\*'\? tensors are"),
        (["wpe.weigth"], r"did you mean wpe.weight\?"),
        (["lm_head.weight"], "'lm_head.weight' matches no tensor"),
        (["h.7.*"], r"'h.7.\*' matches no tensor"),
        (["*"], r"trainer.frozen=\[\*\] leaves nothing to train"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_patterns_that_fit_nothing_or_all_are_refused(frozen, message):
    with pytest.raises(UserError, match=message):
        trained_tensors(frozen, NAMES)


def test_flops_are_of_what_is_trained():
    for model in (tiny_model(), tiny_model(tie_embeddings=False), tiny_model(labels=["a", "b"])):
        names = list(stats.tensor_shapes(model))
        full = stats.train_flops_per_token(model, 16)
        assert stats.train_flops_per_token(model, 16, names) == full == 3 * stats.forward_flops_per_token(model, 16)
        end = [name for name in names if name.startswith("ln_f")]
        head = 0 if model.labels else 2 * 101 * 32  # its input's gradient is all that the last norm needs
        assert stats.train_flops_per_token(model, 16, end) == stats.forward_flops_per_token(model, 16) + head
        last = [name for name in names if name.startswith("h.1.")]
        block = 2 * 12 * 32**2
        assert stats.train_flops_per_token(model, 16, last) == pytest.approx(
            stats.forward_flops_per_token(model, 16) + head + 2 * block + 2 * 4 * 32 * 8
        )


# ---- a run


def saved_at(run: Run, step: int) -> checkpoint.Checkpoint:
    return checkpoint.open_checkpoint(run.checkpoint(step))


def is_frozen(name: str) -> bool:
    return name == "wpe.weight" or name.startswith("h.0.")


def test_frozen_tensors_stay_bit_for_bit_and_have_no_states(zoo):
    base, saved = saved_at(zoo.plain, 16), saved_at(zoo.grown, 4)
    saved.verify()
    assert set(saved.names("weights")) == set(base.names("weights"))
    for name in base.names("weights"):
        before, after = base.tensor("weights", name), saved.tensor("weights", name)
        assert np.array_equal(before, after[: len(before)]) == is_frozen(name), name
    trained = [name for name in base.names("weights") if not is_frozen(name)]
    assert set(saved.names("optimizer")) == {f"{kind}.{name}" for kind in ("mean", "square") for name in trained}
    assert "all but wpe.weight, h.[0].*" in " ".join(zoo.grown.stdout.split())


def test_added_rows_are_trained_saved_with_their_tokenizer_and_exported(zoo, tmp_path):
    saved = saved_at(zoo.grown, 4)
    assert saved.model.vocab_size == 302
    assert Tokenizer.load(saved.tokenizer_dir).fingerprint == Tokenizer.load(zoo.grown.folder / "tokenizer").fingerprint
    rows = saved.tensor("weights", "wte.weight")
    assert rows.shape[0] == 302
    assert not np.array_equal(rows[300], rows[301])  # both began as the mean
    assert "tokenizer.extend: 2 rows added to the embedding's 300" in " ".join(zoo.grown.stdout.split())
    transformers = pytest.importorskip("transformers")
    assert main(["--to", "hf", "--output", str(tmp_path / "hf"), str(saved.path)]) == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.config.vocab_size == 302
    assert np.array_equal(theirs.transformer.wte.weight.detach().numpy(), rows)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")("<|assistant|>")["input_ids"] == [301]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(zoo, tmp_path):
    stopped = zoo.grown.again(tmp_path, "trainer.stop_after_steps=2").run_dir
    options = [option for option in zoo.grown.options_at(tmp_path) if not option.startswith("load=")]
    assert run("train", *options, "resume=auto").run_dir == stopped
    assert curve(stopped) == curve(zoo.grown.run_dir)
    mine, theirs = checkpoint.open_checkpoint(stopped / "checkpoints" / "step_4"), saved_at(zoo.grown, 4)
    for group in ("weights", "optimizer"):
        assert set(mine.names(group)) == set(theirs.names(group))
        for name in theirs.names(group):
            assert np.array_equal(mine.tensor(group, name), theirs.tensor(group, name)), name


def test_other_tensors_are_not_resumed(zoo):
    step = zoo.grown.checkpoint(2)
    message = refusal("train", *zoo.grown.options, f"resume={step}", "trainer.frozen=[]")
    assert "trains different tensors (trainer.frozen: " in message
    assert f"load={step}" in message


def test_what_cannot_be_done_is_refused(zoo):
    config = load_config("train", zoo.grown.run_dir / "config.yaml")

    def with_changes(**changes):
        for key, value in changes.items():
            part, name = key.split("__")
            group = dataclasses.replace(getattr(values, part), **{name: value}) if name else value
            setattr(values, part, group)
        return values

    values = dataclasses.replace(config)
    check_finetuning(values)
    check_frozen(values, task_of(values), tiny_model())
    with pytest.raises(UserError, match=r"trainer.frozen=.* lora=none freezes the whole model already"):
        check_finetuning(with_changes(lora__rank=8))
    with pytest.raises(UserError, match=r"tokenizer.extend=true adds rows to the embedding, which lora="):
        check_finetuning(with_changes(trainer__frozen=[]))
    with pytest.raises(UserError, match=r"but tokenizer.path=null"):
        check_finetuning(with_changes(lora__rank=None, tokenizer__path=None))
    with pytest.raises(UserError, match=r"tokenizer.extend=true adds rows to the embedding of load=DIR, but load=null"):
        check_finetuning(with_changes(load__=None))
    with pytest.raises(UserError, match=r"trainer.frozen=\[ln_f.\*\] keeps weights as they are loaded, and load=null"):
        check_finetuning(with_changes(trainer__frozen=["ln_f.*"]))
    with pytest.raises(UserError, match=r"freezes everything in stage 0 of parallel.pipeline=2, layers 0 to 0"):
        check_frozen(
            with_changes(trainer__frozen=["h.0.*", "w?e.*"], parallel__pipeline=2), task_of(values), tiny_model()
        )
    with pytest.raises(UserError, match=r"optimizer.layer_decay=1.2 must be above 0 and at most 1"):
        validate_train(with_changes(optimizer__layer_decay=1.2, load__="x", tokenizer__path="y", parallel__pipeline=1))
    validate_train(with_changes(optimizer__layer_decay=None, plan__="true"))
    check_added_rows(["wpe.weight"], tiny_model(vocab_size=103), tiny_model())
    check_added_rows(["wte.weight"], tiny_model(), tiny_model())
    with pytest.raises(UserError, match=r"freezes wte.weight, to which tokenizer.extend=true adds rows"):
        check_added_rows(["w?e.weight"], tiny_model(vocab_size=103), tiny_model())
