"""What a start costs and what it must not change: graphs kept between runs, imports that wait."""

import subprocess
import sys

import pytest

from gpt2x.train.compile_cache import MAX_KEPT, describe, is_intact, prune, sources_hash
from tests.train.runs import curve, run_dirs, small, train

SHORT = ["trainer.max_steps=3", "model.num_layers=1", "model.dropout=0.1"]
FIRST_STEP = """
import sys
from gpt2x.commands.entry import RUNS
from gpt2x.cli import hydra_entry

def run(config):
    from gpt2x.train.trainer import Trainer

    report = Trainer.report_startup

    def stop(self, metrics):
        report(self, metrics)
        print("imported:", [name for name in ("mlflow", "matplotlib", "pandas", "pyarrow", "transformers", "torch")
                            if name in sys.modules])
        raise SystemExit

    Trainer.report_startup = stop
    RUNS["train"](config)

hydra_entry("train", run)
"""


def graphs(directory):
    return sorted(path.name for path in (directory / "cache" / "graphs").iterdir())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run that put its graphs into the cache."""
    directory = tmp_path_factory.mktemp("kept")
    done = train(directory, *SHORT)
    assert "s after the command; compiling took" in done.stdout
    assert len(graphs(directory)) == 1
    return directory


@pytest.mark.parametrize("other", [(), ("seed=1", "optimizer.learning_rate=1e-4", "trainer.max_steps=2")])
def test_kept_graphs_give_the_losses_of_compiled_ones(kept, tmp_path, other):
    """Also where values that are no part of the graph differ: weights, rate, order of batches."""
    before = graphs(kept)
    train(kept, *SHORT, *other)
    assert graphs(kept) == before, "none was compiled"
    train(tmp_path, f"dataset.path={kept}/corpus.txt", *SHORT, *other, "trainer.compile_cache=false")
    keys = ("train/loss", "train/grad_norm", "val/loss")
    assert curve(run_dirs(kept)[-1], *keys) == curve(run_dirs(tmp_path)[-1], *keys)
    assert not (tmp_path / "cache" / "graphs").exists()


def test_a_run_that_is_resumed_with_kept_graphs_goes_on_exactly(kept):
    """The cached graph takes the restored weights and optimizer states, not those it was written with."""
    whole = curve(run_dirs(kept)[0])
    train(kept, *SHORT, "trainer.stop_after_steps=2")
    stopped = run_dirs(kept)[-1]
    before = graphs(kept)
    train(kept, *SHORT, f"resume={stopped}/checkpoints/step_2")
    assert graphs(kept) == before
    assert curve(run_dirs(kept)[-1]) == whole


def test_another_graph_is_not_taken_for_a_kept_one(kept):
    before = graphs(kept)
    train(kept, *SHORT, "trainer.grad_clip=0.5")
    assert len(graphs(kept)) == len(before) + 1


def test_modules_that_the_first_step_does_not_need_are_not_imported(tmp_path):
    script = tmp_path / "first_step.py"
    script.write_text(FIRST_STEP, encoding="utf-8")
    command = [sys.executable, str(script), *small(tmp_path), *SHORT, "tracker=mlflow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "imported: []" in done.stdout, done.stdout + done.stderr


def test_a_damaged_set_of_graphs_is_not_taken(tmp_path):
    (tmp_path / "graph").write_bytes(b"graph")
    assert not is_intact(tmp_path)
    describe(tmp_path)
    assert is_intact(tmp_path)
    (tmp_path / "graph").write_bytes(b"grapH")
    assert not is_intact(tmp_path)


def test_sources_count_by_name_and_content(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    first = sources_hash(tmp_path)
    (tmp_path / "a.pyc").write_text("not a source")
    assert sources_hash(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2")
    assert sources_hash(tmp_path) != first


def test_few_sets_are_kept(tmp_path):
    for number in range(MAX_KEPT + 2):
        (tmp_path / f"{number:03}").mkdir()
    prune(tmp_path)
    assert len(list(tmp_path.iterdir())) == MAX_KEPT
