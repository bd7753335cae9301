"""Updates that are left out as spikes, and runs that have diverged: the limits, the counts, and what a run does."""

import math
from dataclasses import replace

import numpy as np
import pytest

from gpt2x.checkpoint import list_checkpoints, open_checkpoint
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.train.guard import Guard, guessing_loss
from gpt2x.train.state import LoopState
from gpt2x.train.step import UpdateResult
from tests.support.configs import typed
from tests.support.in_process import train
from tests.support.small_runs import curve, run_dirs

MODEL = ModelConfig(name="tiny", num_layers=1, hidden_size=8, num_heads=2, vocab_size=100)


def guard(**options) -> Guard:
    config = typed("train")
    return Guard(replace(config, trainer=replace(config.trainer, **options)), MODEL)


def result(loss: float, norm: float = 1.0, *, is_made: bool = True) -> UpdateResult:
    return UpdateResult(loss, norm, is_made, 1.0)


def test_limits_are_the_mean_and_the_deviation_of_the_last_updates():
    state, spikes = LoopState(), guard(spike_window=4, spike_sigma=2.0)
    values = [(5.0, 1.0), (4.0, 3.0), (4.5, 2.0), (3.0, 1.5), (2.0, 9.0)]
    for loss, norm in values[:3]:
        assert spikes.limits(state) == (math.inf, math.inf)
        spikes.count(state, result(loss, norm), spikes.limits(state))
    for loss, norm in values[3:]:
        spikes.count(state, result(loss, norm), spikes.limits(state))
    expected = [np.mean(column) + 2 * np.std(column, ddof=1) for column in zip(*values[-4:], strict=True)]
    np.testing.assert_allclose(spikes.limits(state), expected, rtol=1e-14)


def test_without_a_window_nothing_is_a_spike():
    state, spikes = LoopState(), guard()
    for _ in range(200):
        spikes.count(state, result(3.0), spikes.limits(state))
    assert spikes.limits(state) == (math.inf, math.inf)
    assert state.recent == []


def test_values_that_are_not_finite_are_not_in_the_window():
    state, spikes = LoopState(), guard(spike_window=2)
    for loss, norm in [(5.0, 1.0), (math.nan, math.nan), (5.0, math.inf), (4.0, 2.0)]:
        spikes.count(state, result(loss, norm, is_made=math.isfinite(norm)), (math.inf, math.inf))
    assert state.recent == [(5.0, 1.0), (4.0, 2.0)]


@pytest.mark.parametrize("loss", [math.log(100) * 3.01, 3e7, math.inf, math.nan])
def test_a_loss_far_above_guessing_for_too_long_is_a_divergence(loss):
    state, ends = LoopState(), guard(max_skipped_steps=2)
    for count in range(3):
        assert ends.divergence(state) is None
        ends.count(state, result(loss), (math.inf, math.inf))
        assert state.exploded_in_a_row == count + 1
    assert "3 updates in a row had a loss above 13.8" in ends.divergence(state)
    ends.count(state, result(2.0), (math.inf, math.inf))
    assert (state.exploded_in_a_row, ends.divergence(state)) == (0, None)


def test_explosions_can_be_allowed():
    state, ends = LoopState(), guard(max_skipped_steps=0, explosion_factor=None)
    ends.count(state, result(math.nan), (math.inf, math.inf))
    assert ends.divergence(state) is None


def test_loss_of_guessing():
    assert guessing_loss(MODEL) == math.log(100)
    assert guessing_loss(replace(MODEL, labels=["a", "b", "c"])) == math.log(3)


CONSTANT = ("schedule=constant", "schedule.warmup_steps=0")


@pytest.mark.run
def test_an_explosion_ends_a_run_before_it_is_in_a_checkpoint(tmp_path):
    options = ["optimizer.learning_rate=1e3", "trainer.max_steps=40", "trainer.checkpoint_every_steps=1"]
    with pytest.raises(UserError, match=r"so the run has diverged\. Lower optimizer.learning_rate=1000") as error:
        train(tmp_path, *CONSTANT, *options, "trainer.max_skipped_steps=3")
    (run_dir,) = run_dirs(tmp_path)
    (saved,) = list_checkpoints(run_dir)
    assert open_checkpoint(saved).loop_state["exploded_in_a_row"] == 0
    losses = [loss for (loss,) in curve(run_dir, "train/loss").values()]
    (path,) = (run_dir / "nonfinite").iterdir()
    assert np.load(path)["ids"].shape == (2, 4, 33)
    assert path.name == f"step_{len(losses)}_rank_0.npz"
    assert f"resume={saved}" in str(error.value)
    assert math.isfinite(losses[0])
    # the same command again gets the same answer, and a lower rate continues
    with pytest.raises(UserError, match="has diverged"):
        train(tmp_path, *CONSTANT, *options, "trainer.max_skipped_steps=3", "resume=auto")
    continued = train(tmp_path, *CONSTANT, "optimizer.learning_rate=1e-3", "trainer.max_steps=3", f"resume={saved}")
    assert len(curve(continued.run_dir, "train/loss")) == 3


@pytest.mark.run
def test_a_spike_changes_nothing_and_a_resumed_run_leaves_out_the_same_updates(tmp_path):
    options = [
        "trainer.max_steps=12",
        "trainer.spike_window=4",
        "trainer.spike_sigma=0.5",
        "optimizer.learning_rate=3e-2",
    ]
    for name in ("whole", "part"):
        (tmp_path / name).mkdir()
    whole = train(tmp_path / "whole", *CONSTANT, *options).run_dir
    state = open_checkpoint(list_checkpoints(whole)[-1]).loop_state
    assert 0 < 12 - state["num_updates"] < 8
    train(tmp_path / "part", *CONSTANT, *options, "trainer.stop_after_steps=7")
    part = train(tmp_path / "part", *CONSTANT, *options, "resume=auto").run_dir
    assert curve(part) == curve(whole)
    assert open_checkpoint(list_checkpoints(part)[-1]).loop_state["recent"] == state["recent"]
