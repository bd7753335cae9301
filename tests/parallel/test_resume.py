"""A run saved in one layout goes on in any other, as if it had never stopped: real processes, gpt2_tiny."""

import dataclasses
import shutil

import numpy as np
import pytest

from gpt2x.config.files import load_config
from gpt2x.errors import UserError
from gpt2x.train.decision.model import complete_model
from gpt2x.train.decision.source import RunSource
from gpt2x.train.resume import differences, find_resumption
from tests.parallel.runs import distance, pairs, relative, saved
from tests.train.runs import curve, start

LAYOUTS = ("single", "dp2", "tp2", "pp2", "zero2", "dp2_tp2_pp2")
NEXT = dict(zip(LAYOUTS, (*LAYOUTS[1:], LAYOUTS[0]), strict=True))
SAVED, STOP = 6, 12


def options(layout):
    return () if layout == "single" else (f"parallel={layout}",)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_checkpoints_of_all_layouts_hold_the_same(runs, layout):
    single, run_dir = runs.of(), runs.of(*options(layout))
    assert saved(run_dir, SAVED).loop_state == saved(single, SAVED).loop_state
    assert max(np.abs(a - b).max() for _, a, b in pairs("weights", run_dir, single, SAVED)) <= 5e-5
    assert max(relative(a, b) for _, a, b in pairs("optimizer", run_dir, single, SAVED)) <= 2e-4


def check(run_dir, single, first_step=1):
    found = distance(run_dir, single, step=STOP, first=first_step)
    print(found)
    assert max(curve(run_dir)) == STOP
    assert found.loss <= 1e-5
    assert found.validation <= 1e-5
    assert found.norm <= 1e-4
    assert found.weights <= 1e-4
    mine, theirs = (saved(path, STOP).loop_state for path in (run_dir, single))
    assert mine.pop("best_value") == pytest.approx(theirs.pop("best_value"), rel=1e-5)
    assert mine == theirs


@pytest.mark.parametrize(("first", "second"), NEXT.items())
def test_any_layout_goes_on_from_another(runs, first, second):
    source = runs.of(*options(first)) / "checkpoints" / f"step_{SAVED}"
    padding = ["model.pad_vocab_multiple=128"] if second == "tp2" else []  # of the layout, not of the run
    run_dir = runs.of(f"resume={source}", *options(second), *padding, f"trainer.stop_after_steps={STOP}")
    check(run_dir, runs.of())


@pytest.mark.slow
@pytest.mark.parametrize("second", LAYOUTS)
def test_any_layout_goes_on_from_every_one(runs, tmp_path, second):
    """All pairs: the processes of `second`, started once, go on from a checkpoint of each layout after the other."""
    checkpoints = [runs.of(*options(first)) / "checkpoints" / f"step_{SAVED}" for first in LAYOUTS]
    start("-m", "tests.parallel.continuations", runs.of(*options(second)), str(STOP), tmp_path, *checkpoints)
    for number, first in enumerate(LAYOUTS):
        print(first, second)
        check(tmp_path / str(number), runs.of(), first_step=SAVED + 1)


def test_auto_finds_the_run_of_another_layout(runs, tmp_path):
    run_dir = tmp_path / "pretrain" / "run"
    shutil.copytree(runs.of(*options("tp2")), run_dir)
    for checkpoint in (run_dir / "checkpoints").iterdir():
        if checkpoint.name != f"step_{SAVED}":
            shutil.rmtree(checkpoint)
    runs.start(tmp_path, "resume=auto", *options("dp2"), f"trainer.stop_after_steps={STOP}")
    check(run_dir, runs.of())


def changed(config, **values):
    """`config` with `group_key=value` replaced."""
    for key, value in values.items():
        group, name = key.split("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{name: value})})
    return config


def test_what_makes_another_run(runs, tmp_path):
    run_dir = runs.of()
    config = dataclasses.replace(load_config("train", run_dir / "config.yaml"), resume="auto", num_devices=8)
    stored = saved(run_dir, SAVED).run_config
    other = changed(
        config, parallel__name="tp2", parallel__tensor=2, parallel__micro_batches=4, launch__port=1234,
        trainer__micro_batch_size=2, model__pad_vocab_multiple=128, hardware__name="atlas",
        hardware__device_target="Ascend", hardware__flash_attention=True, paths__outputs=str(run_dir.parents[2]),
    )  # fmt: skip
    assert differences(other, stored) == []
    found = find_resumption(other, tmp_path)
    assert (found.run_dir, found.differences) == (run_dir, [])
    assert found.saved.loop_state["step"] == 20
    model = complete_model(other, RunSource(None, found, None, None), None)
    assert model == dataclasses.replace(found.saved.model, pad_vocab_multiple=128)
    for key, value, line in (
        ("hardware__precision", "bf16", "hardware.precision: fp32 -> bf16"),
        ("trainer__global_batch_size", 16, "trainer.global_batch_size: 8 -> 16"),
        ("optimizer__learning_rate", 0.01, "optimizer.learning_rate: 0.001 -> 0.01"),
    ):
        assert differences(changed(other, **{key: value}), stored) == [line]
        with pytest.raises(UserError, match=f"nothing to resume.*{line}"):
            find_resumption(changed(other, **{key: value}), tmp_path)
