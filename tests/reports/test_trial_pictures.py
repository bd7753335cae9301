"""The picture of a multirun: what is drawn for which keys."""

import pytest

from gpt2x.errors import UserError
from gpt2x.reports import read_run, sweep_picture
from gpt2x.reports.comparison import compare
from gpt2x.reports.find import below
from gpt2x.reports.html import multirun
from gpt2x.reports.trial_pictures import sweep_figure
from gpt2x.reports.trials import is_log, trials_of
from tests.reports.conftest import write_job

pytestmark = pytest.mark.run  # the first picture imports matplotlib


def sweep(folder, jobs):
    for number, (varied, value, *status) in enumerate(jobs):
        write_job(folder / str(number), number, varied, value=value, status=status[0] if status else "finished")
    return folder


def plots(folder):
    return sweep_figure(trials_of(below(folder))).axes


def test_a_rate_has_a_logarithmic_axis_and_seeds_a_mean(tmp_path):
    rates = ("1e-4", "1e-3", "1e-2")
    folder = sweep(tmp_path / "s", [([f"optimizer.learning_rate={rate}", f"seed={seed}"], 4.0 + seed)
                                    for rate in rates for seed in (0, 2)])  # fmt: skip
    (axes,) = plots(folder)
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning_rate", "val/loss")
    means = next(line for line in axes.lines if len(line.get_xdata()) == 3)
    assert means.get_ydata().tolist() == [5.0, 5.0, 5.0]
    assert sweep_picture(folder, tmp_path / "new/p.png")
    assert (tmp_path / "new/p.png").read_bytes().startswith(b"\x89PNG")


def test_two_keys_are_lines_and_many_a_heat_map(tmp_path):
    rates = [f"optimizer.learning_rate={rate}" for rate in (1, 2, 3, 4, 5, 6, 7)]
    few = sweep(tmp_path / "few", [([rate, f"optimizer={name}"], 1.0) for rate in rates for name in ("adamw", "sgd")])
    (axes,) = plots(few)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["optimizer=adamw", "optimizer=sgd"]
    many = sweep(tmp_path / "many", [([rate, f"trainer.seq_len={n}"], n / 10) for rate in rates for n in range(7)])
    (axes,) = plots(many)
    assert len(axes.texts) == 49
    assert axes.get_legend() is None


def test_a_search_has_the_best_so_far_and_a_plot_per_key(tmp_path):
    values = [5.0, 4.0, 6.0, 3.0, None, 2.0]
    states = ["finished", "finished", "finished", "finished", "failed", "pruned"]
    folder = sweep(tmp_path / "s", [([f"optimizer.learning_rate=0.00{i + 1}", f"optimizer.weight_decay=0.{i}"], *pair)
                                    for i, pair in enumerate(zip(values, states, strict=True))])  # fmt: skip
    first, rate, decay = plots(folder)
    best = next(line for line in first.lines if line.get_label() == "best so far")
    assert best.get_ydata().tolist() == [5.0, 4.0, 4.0, 3.0]  # a pruned job is not the best
    assert (rate.get_xlabel(), decay.get_xlabel()) == ("learning_rate", "weight_decay")
    assert "4 finished, 1 failed, 1 pruned" in first.get_title(loc="left")


def test_a_value_that_no_job_survives_is_not_drawn(tmp_path):
    rates, heads = ("1e-3", "1e-2"), ("2", "3")
    folder = sweep(tmp_path / "s", [([f"optimizer.learning_rate={rate}", f"model.num_heads={number}"],
                                     *((4.0,) if number == "2" else (None, "failed")))
                                    for rate in rates for number in heads])  # fmt: skip
    (axes,) = plots(folder)
    assert axes.get_xlabel() == "learning_rate"
    assert "2 finished, 2 failed" in axes.get_title(loc="left")


def test_a_sweep_without_values_has_no_picture(tmp_path):
    folder = sweep(tmp_path / "s", [(["seed=1"], None, "failed"), (["seed=2"], None, "running")])
    assert not sweep_picture(folder, tmp_path / "p.png")
    assert not (tmp_path / "p.png").exists()
    with pytest.raises(UserError, match="holds no runs"):
        sweep_picture(tmp_path / "s" / "0" / "x", tmp_path / "p.png")


def test_the_page_of_a_multirun_has_its_picture(write_run, tmp_path):
    paths = [write_run(f"s/{i}", val={3: 4.0 + i}, seed=i, job={"number": i, "varied": [f"seed={i}"]}) for i in (0, 1)]
    runs = [read_run(path) for path in paths]
    assert "<svg" in multirun(compare(runs))
    assert multirun(compare([*runs, read_run(write_run("other"))])) == ""


def test_axes_are_logarithmic_for_rates_and_wide_ranges():
    assert is_log(["1e-4", "1e-3"], "optimizer.learning_rate")
    assert not is_log(["0.001", "0.002"], "optimizer.learning_rate")
    assert not is_log(["0", "10"], "optimizer.weight_decay")
    assert not is_log(["4", "16"], "trainer.global_batch_size")
    assert not is_log(["adamw", "sgd"], "optimizer")
