"""The presets debug=overfit, fast, limit, nan and lr_find, and the keys that they set."""

import json

import numpy as np
import pytest

from gpt2x import checkpoint
from gpt2x.commands.hydra_grammar import with_words
from gpt2x.config.schema import LrFindConfig
from gpt2x.errors import UserError
from gpt2x.train.lr_find import RateSweep, conclusions
from tests.support.configs import typed
from tests.support.decide import decide, refusal
from tests.support.in_process import train
from tests.support.small_runs import curve, run_dirs, small

ONE_LAYER = ["model.num_layers=1", "trainer.micro_batch_size=null"]
DIVERGING = ["optimizer.weight_decay=0", "trainer.grad_clip=null", "trainer.max_steps=9"]


# ---- overfit


@pytest.mark.run
def test_overfit_ends_when_the_loss_is_reached(tmp_path):
    run = train(tmp_path, *ONE_LAYER, "debug=overfit", "trainer.required_loss=4", "optimizer.learning_rate=2e-2")
    losses = [loss for (loss,) in curve(run.run_dir, "train/loss").values()]
    assert losses[-1] <= 4 < losses[-2]
    assert f"train/loss fell from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps" in run.stdout
    assert [path.name for path in checkpoint.list_checkpoints(run.run_dir)] == [f"step_{len(losses)}"]
    epochs = curve(run.run_dir, "train/epoch")
    assert epochs[2] == (2.0,), "each update is a pass over the same rows"


@pytest.mark.run
def test_overfit_fails_if_the_loss_stays_high(tmp_path):
    with pytest.raises(UserError, match=r"went from 5\.\d+ to 5\.\d+ in 2 steps and did not reach .*=0\.05"):
        train(tmp_path, *ONE_LAYER, "debug=overfit", "trainer.max_steps=2")
    (run_dir,) = run_dirs(tmp_path)
    assert checkpoint.list_checkpoints(run_dir), "what it has learnt is there"


# ---- fast and limit


@pytest.mark.run
def test_fast_takes_every_path(tmp_path):
    run = train(tmp_path, *ONE_LAYER, "debug=fast", "trainer.sample_prompts=[the]")
    assert [value is None for (value,) in curve(run.run_dir, "val/loss").values()] == [False, False]
    assert [path.name for path in checkpoint.list_checkpoints(run.run_dir)] == ["step_1", "step_2"]
    assert (run.run_dir / "samples.txt").is_file()
    assert (run.run_dir / "loss.png").is_file()


def test_limit_uses_the_first_rows(tmp_path):
    options = [*small(tmp_path), "debug=limit", "trainer.max_train_rows=20"]
    decision = decide("train", *options)
    whole = decide("train", *small(tmp_path))
    assert decision.train_split.num_blocks == 20 < whole.train_split.num_blocks
    assert decision.steps.per_epoch == 2
    assert decision.data.fingerprint == whole.data.fingerprint
    text = refusal("train", *options, "trainer.max_train_rows=4")
    assert "trainer.max_train_rows=4: trainer.global_batch_size=8 exceeds the 4 training blocks" in text


# ---- nan


def test_nan_is_a_word():
    assert with_words(["debug=nan", "+debug=fast,nan", "model.dropout=nan", "debug='nan'", "-m"]) == [
        "debug='nan'", "+debug=fast,'nan'", "model.dropout=nan", "debug='nan'", "-m",
    ]  # fmt: skip
    assert typed("train", "debug=nan").trainer.stop_on_nonfinite


@pytest.mark.run
@pytest.mark.parametrize(("rate", "origin"), [
    ("3e6", "the loss is finite, .* gradients are not: the first in backward is that of h.0"),
    ("1e30", "the first activation that is not finite is the output of h.0.attn: .* values; the output of h.0.ln_1 is"),
])  # fmt: skip
def test_nan_names_the_origin_and_keeps_what_repeats_it(tmp_path, rate, origin):
    options = [*ONE_LAYER, "debug=nan", *DIVERGING, f"optimizer.learning_rate={rate}"]
    with pytest.raises(UserError, match=origin) as first:
        train(tmp_path, *options)
    (run_dir,) = run_dirs(tmp_path)
    step = max(curve(run_dir))
    with np.load(run_dir / f"nonfinite/step_{step + 1}_rank_0.npz") as inputs:
        assert inputs["ids"].shape == (1, 8, 33)
    before = run_dir / f"checkpoints/step_{step}"
    assert f"resume={before}" in str(first.value)
    with pytest.raises(UserError, match=origin) as second:
        train(tmp_path, *options, f"resume={before}")
    assert str(second.value).splitlines()[0] == str(first.value).splitlines()[0]


# ---- the sweep of the learning rate


@pytest.mark.run
def test_lr_find_draws_a_curve_and_writes_no_checkpoint(tmp_path):
    run = train(tmp_path, *ONE_LAYER, "debug=lr_find", "lr_find.num_steps=40", "lr_find.min_rate=1e-5",
                "lr_find.max_rate=1e3")  # fmt: skip
    lines = [json.loads(line) for line in (run.run_dir / "lr_find.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = np.log10([line["lr"] for line in lines])
    assert rates[0] == pytest.approx(-5)
    assert np.diff(rates) == pytest.approx(np.full(len(lines) - 1, 8 / 39))
    assert (run.run_dir / "lr_find.png").read_bytes()[:4] == b"\x89PNG"
    assert not (run.run_dir / "checkpoints").exists()
    assert not (run.run_dir / "metrics.jsonl").exists()
    assert "it falls most steeply at optimizer.learning_rate=" in run.stdout
    assert "a tenth is optimizer.learning_rate=" in run.stdout


def swept(losses, **options):
    sweep = RateSweep(LrFindConfig(num_steps=len(losses), min_rate=1e-4, max_rate=1.0, **options))
    for loss in losses:
        sweep.add(float(loss))
        if sweep.has_diverged:
            break
    return sweep


def test_a_constant_loss_has_a_constant_mean():
    sweep = swept([3.0] * 20)
    assert sweep.smoothed == pytest.approx([3.0] * 20)
    assert sweep.lowest is None or sweep.steepest is None or sweep.smoothed[sweep.lowest] == pytest.approx(3.0)


def test_a_sweep_finds_the_steepest_point_and_the_minimum():
    exponents = np.linspace(-4, 0, 101)
    losses = 5 - 2 / (1 + np.exp(-10 * (exponents + 2))) + 50 * np.maximum(exponents + 0.5, 0) ** 2
    sweep = swept(losses, smoothing=0.0)
    assert np.log10(sweep.rates[sweep.steepest]) == pytest.approx(-2, abs=0.05)
    assert sweep.lowest == int(np.argmin(losses))
    assert sweep.has_diverged
    assert len(sweep.rates) < 101
    text = " ".join(conclusions(sweep))
    assert "the loss diverged" in text
    assert "it falls most steeply at optimizer.learning_rate=1.0e-02" in text


@pytest.mark.parametrize("last", [np.nan, np.inf, 6.1])
def test_a_sweep_ends_when_the_loss_diverges(last):
    assert not swept([3.0] * 15, smoothing=0.0).has_diverged
    assert swept([3.0] * 15 + [last], smoothing=0.0).has_diverged


def test_a_loss_that_only_rises_gives_no_rate():
    assert "no rate is suggested" in " ".join(conclusions(swept(np.linspace(3, 4, 20))))


def test_a_sweep_continues_no_run_and_needs_a_range(tmp_path):
    assert "resume=auto: the sweep" in refusal("train", *small(tmp_path), "debug=lr_find", "resume=auto")
    wrong = refusal("train", *small(tmp_path), "debug=lr_find", "lr_find.min_rate=1", "lr_find.max_rate=0.5")
    assert "lr_find.min_rate=1 is not below lr_find.max_rate=0.5" in wrong
