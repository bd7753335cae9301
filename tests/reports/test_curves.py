"""What curves are drawn against, and how they are averaged."""

import json
import math

import numpy as np
import pytest

from gpt2x.config.files import load_config
from gpt2x.model.stats import train_flops_per_token
from gpt2x.reports.curves import POINTS, axis_values, curve, final_train_loss, smooth
from gpt2x.reports.run import read_run
from gpt2x.tracking.plots import _smooth
from tests.reports.conftest import T0, line


def test_seconds_leave_out_compilation_and_pauses(write_run):
    path = write_run("run")
    resumed = line(4, 2.5) | {"time": T0 + 5000.0, "perf/compile_time_s": 9.0}  # after a pause of over an hour
    with (path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in (resumed, line(5, 2.4) | {"time": T0 + 5003.0}))
    # the first step, two intervals of 2 s, the first step of the second attempt, an interval of 3 s
    assert axis_values(read_run(path), "seconds").tolist() == [0.5, 2.5, 4.5, 5.0, 8.0]


def test_flops_are_those_of_the_mfu(write_run):
    path = write_run("run")
    config = load_config("train", path / "config.yaml")
    run = read_run(path)
    assert axis_values(run, "flops")[-1] == pytest.approx(3 * 256 * train_flops_per_token(config.model, 32))
    assert axis_values(run, "tokens").tolist() == [256.0, 512.0, 768.0]
    adapters = read_run(write_run("lora", load="base", lora__rank=8, lora__alpha=16.0))
    assert axis_values(adapters, "flops")[-1] < axis_values(run, "flops")[-1]


def test_runs_of_other_versions_have_flops_too(write_run):
    path = write_run("run", trainer__a_key_of_tomorrow=1)
    assert axis_values(read_run(path), "flops") is not None


def test_a_step_without_a_speed_counts_the_whole_batch(write_run):
    path = write_run("run", ())
    values = line(1, 5.0)
    del values["perf/tokens_per_s"], values["perf/step_time_s"]
    (path / "metrics.jsonl").write_text(json.dumps(values) + "\n", encoding="utf-8")
    config = load_config("train", path / "config.yaml")
    assert axis_values(read_run(path), "flops")[0] == pytest.approx(8 * 32 * train_flops_per_token(config.model, 32))


def test_losses_are_averaged_as_in_the_picture_of_a_run():
    values = np.random.default_rng(0).normal(size=50)
    values[7] = math.nan
    assert smooth(values, 5) == pytest.approx(np.array(_smooth(list(values), 5)))


def test_a_long_curve_is_thinned_to_its_ends(write_run):
    run = read_run(write_run("run", np.linspace(5, 3, 1000).tolist()))
    x, y = curve(run, "train/loss", "steps", 1)
    assert len(x) == POINTS
    assert (x[0], x[-1], y[0], y[-1]) == (1, 1000, 5, 3)
    assert final_train_loss(run, 3) == pytest.approx(np.linspace(5, 3, 1000)[-3:].mean())
