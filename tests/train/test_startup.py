"""What a start costs and what it must not change: graphs kept between runs, imports that wait."""

import subprocess
import sys
from importlib.util import find_spec, module_from_spec

import mindspore as ms
import pytest

from gpt2x.train.compile_cache import MAX_KEPT, caching, prune, sources_hash
from tests.support import in_process
from tests.support.processes import train
from tests.support.small_runs import curve, run_dirs, small

SHORT = ["trainer.max_steps=3", "model.num_layers=1", "model.dropout=0.1"]
FIRST_STEP = """
import sys
from gpt2x.commands.entry import start
from gpt2x.commands.hydra_entry import hydra_main

def run(name, config, role, run_dir):
    from gpt2x.train.hooks import ShowStep

    show = ShowStep.run

    def stop(self, trainer, metrics, progress):
        show(self, trainer, metrics, progress)
        print("imported:", [name for name in ("mlflow", "matplotlib", "pandas", "pyarrow", "transformers", "torch")
                            if name in sys.modules])
        raise SystemExit

    ShowStep.run = stop
    start(name, config, role, run_dir)

hydra_main("train", run)
"""


def graphs(directory):
    return sorted(path.name for path in (directory / "cache" / "graphs").iterdir())


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The folder of a run that put its graphs into the cache."""
    directory = tmp_path_factory.mktemp("kept")
    done = train(directory, *SHORT)
    assert "s after the start; compiling took" in done.stdout
    assert len(graphs(directory)) == 1
    return directory


@pytest.mark.launch
def test_kept_graphs_give_the_losses_of_compiled_ones(kept, tmp_path):
    """Also if values that are no part of the graph differ: weights, rate, order of batches."""
    before = graphs(kept)
    other = ["seed=1", "optimizer.learning_rate=1e-4", "trainer.max_steps=2"]
    train(kept, *SHORT, *other)
    assert graphs(kept) == before, "none was compiled"
    compiled = in_process.train(tmp_path, f"dataset.path={kept}/corpus.txt", *SHORT, *other).run_dir
    keys = ("train/loss", "train/grad_norm", "val/loss")
    assert curve(run_dirs(kept)[-1], *keys) == curve(compiled, *keys)
    assert not (tmp_path / "cache" / "graphs").exists()


@pytest.mark.launch
def test_a_run_that_is_resumed_with_kept_graphs_continues_exactly(kept, tmp_path):
    """The cached graph takes the restored weights and optimizer states, not those it was written with."""
    whole = curve(run_dirs(kept)[0])
    compiled = in_process.train(tmp_path, f"dataset.path={kept}/corpus.txt", *SHORT).run_dir
    assert curve(compiled) == whole
    stopped = in_process.train(tmp_path, f"dataset.path={kept}/corpus.txt", *SHORT, "trainer.stop_after_steps=2")
    before = graphs(kept)
    train(kept, *SHORT, f"resume={stopped.run_dir}/checkpoints/step_2")
    assert graphs(kept) == before
    assert curve(run_dirs(kept)[-1]) == whole


@pytest.mark.launch
def test_a_different_graph_is_not_taken_for_a_kept_one(kept):
    before = graphs(kept)
    train(kept, *SHORT, "trainer.grad_clip=0.5")
    assert len(graphs(kept)) == len(before) + 1


def test_streams_survive_that_sys_is_initialized_again(tmp_path, monkeypatch):
    """Which MindSpore does to list the files of a program; Python's own first stream fails on a closed terminal."""
    monkeypatch.setattr(ms, "set_context", lambda **_: None)
    before = sys.stderr, sys.__stderr__, sys.excepthook
    with caching(tmp_path):
        module_from_spec(find_spec("sys"))
        assert sys.stderr is not before[0]
    assert (sys.stderr, sys.__stderr__, sys.excepthook) == before


@pytest.mark.launch
def test_modules_that_the_first_step_does_not_need_are_not_imported(tmp_path):
    script = tmp_path / "first_step.py"
    script.write_text(FIRST_STEP, encoding="utf-8")
    command = [sys.executable, str(script), *small(tmp_path), *SHORT, "tracker=mlflow"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "imported: []" in done.stdout, done.stdout + done.stderr


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
