"""A run saved in one layout continues in any other, as if it had never stopped: real processes, a small model."""

import dataclasses
import itertools
import shutil

import numpy as np
import pytest

from gpt2x.config.files import load_config
from gpt2x.tasks.registry import task_of
from gpt2x.train.decision.model import complete_model
from gpt2x.train.decision.source import RunSource
from gpt2x.train.resume import differences, find_resumption
from gpt2x.train.run_search import newest_match
from tests.parallel.runs import check_equal, pairs, relative, saved
from tests.support.layout_jobs import JOBS, PROCESSES, SAVED, STEPS, resumed
from tests.support.layout_runs import LAUNCHED, each
from tests.support.processes import start
from tests.support.small_runs import curve

pytestmark = LAUNCHED

LAYOUTS = list(PROCESSES)
# The last layout is continued by the first in `test_auto_…`; that it continues the one before is `exhaustive`, as all
# other pairs are: eight processes cost as much as the rest of the ring
RING = list(itertools.pairwise(LAYOUTS[:-1]))
OTHERS = [pair for pair in itertools.product(LAYOUTS, LAYOUTS) if pair not in RING]


@pytest.mark.parametrize("layout", each(LAYOUTS[1:]))
@pytest.mark.needs("single")
def test_checkpoints_of_all_layouts_hold_the_same(layout_runs, layout):
    single, run_dir = layout_runs.of("single"), layout_runs.of(layout)
    check_same_state(run_dir, single, SAVED)
    assert max(np.abs(a - b).max() for _, a, b in pairs("weights", run_dir, single, SAVED)) <= 5e-5
    assert max(relative(a, b) for _, a, b in pairs("optimizer", run_dir, single, SAVED)) <= 2e-4


def check(run_dir, single):
    check_equal(run_dir, single, step=STEPS)
    assert max(curve(run_dir)) == STEPS
    check_same_state(run_dir, single, STEPS)


def check_same_state(run_dir, single, step):
    """The position of both runs is equal; the best values, sums in another order, up to rounding."""
    mine, theirs = (saved(path, step).loop_state for path in (run_dir, single))
    assert mine.pop("best_value") == pytest.approx(theirs.pop("best_value"), rel=1e-5)
    bests, expected = mine.pop("bests"), theirs.pop("bests")
    assert bests.keys() == expected.keys()
    for metric, (value, at) in bests.items():
        assert (value, at) == (pytest.approx(expected[metric][0], rel=1e-5), expected[metric][1])
    assert mine.pop("records").keys() == theirs.pop("records").keys()  # their times differ
    assert mine == theirs


@pytest.mark.parametrize(
    "job",
    [*each([resumed(*pair) for pair in RING]), *each([resumed(*pair) for pair in OTHERS], pytest.mark.exhaustive)],
)
@pytest.mark.needs("single")
def test_any_layout_continues_another(layout_runs, job):
    run_dir = layout_runs.of(job)
    assert not (run_dir / "checkpoints" / f"step_{SAVED}").exists(), "it did not train the first steps itself"
    check(run_dir, layout_runs.of("single"))


@pytest.mark.needs("dp2_tp2_pp2", "single")
def test_auto_finds_the_run_of_another_layout(layout_runs, tmp_path):
    """The last layout's run, continued by one process in the same directory."""
    run_dir = tmp_path / "pretrain" / "run"
    shutil.copytree(layout_runs.of("dp2_tp2_pp2"), run_dir)
    for checkpoint in (run_dir / "checkpoints").iterdir():
        if checkpoint.name != f"step_{SAVED}":
            shutil.rmtree(checkpoint)
    start("train.py", *JOBS["single"].arguments(layout_runs.folder), f"paths.outputs={tmp_path}", "resume=auto")
    check(run_dir, layout_runs.of("single"))


def changed(config, **values):
    """Return `config` with `group_key=value` replaced."""
    for key, value in values.items():
        group, name = key.split("__")
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{name: value})})
    return config


@pytest.mark.needs("single")
def test_what_makes_another_run(layout_runs, tmp_path):
    run_dir = tmp_path / "pretrain" / "run"
    shutil.copytree(layout_runs.of("single"), run_dir)
    config = dataclasses.replace(load_config("train", run_dir / "config.yaml"), resume="auto", num_devices=8)
    stored = saved(run_dir, SAVED).run_config
    other = changed(
        config, parallel__name="tp2", parallel__tensor=2, parallel__micro_batches=4, launch__port=1234,
        trainer__micro_batch_size=2, model__pad_vocab_multiple=128, hardware__name="atlas",
        hardware__device_target="Ascend", hardware__flash_attention=True, paths__outputs=str(tmp_path),
    )  # fmt: skip
    assert differences(other, stored) == []
    assert newest_match(other, tmp_path, tmp_path / "new") == (run_dir, "")
    found = find_resumption(other, run_dir)
    assert found.differences == []
    assert found.saved.loop_state["step"] == STEPS
    model = complete_model(other, task_of(other), RunSource(None, found, None, None), None)
    assert model == dataclasses.replace(found.saved.model, pad_vocab_multiple=128)
    for key, value, line in (
        ("hardware__precision", "bf16", "hardware.precision: fp32 -> bf16"),
        ("trainer__global_batch_size", 16, "trainer.global_batch_size: 8 -> 16"),
        ("optimizer__learning_rate", 0.01, "optimizer.learning_rate: 0.001 -> 0.01"),
    ):
        assert differences(changed(other, **{key: value}), stored) == [line]
        match, nearest = newest_match(changed(other, **{key: value}), tmp_path, tmp_path / "new")
        assert match is None
        assert line in nearest
