"""How runs are called, and what a command line says about them."""

import json

import pytest

from gpt2x.config import DatasetConfig
from gpt2x.runtime.jobs import JOB, read_job
from gpt2x.tracking.description import (
    MAX_NAME_CHARS,
    data_source,
    joined,
    source_name,
    spelled,
    sweep_name,
    typed_overrides,
)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer.learning_rate=0.001", "seed=2"], "learning_rate=0.001 seed=2"),
        (["a.name=x", "b.name=y"], "a.name=x b.name=y"),
        (["+new.key=1", "~lora"], "key=1 ~lora"),
        (["load=/runs/first/checkpoints/step_20/"], "load=first/step_20"),
        (["generation.prompts=[a/b,c]"], "prompts=[a/b,c]"),
        ([f"x={'v' * 90}"], f"x={'v' * 39}…"),
    ],
)
def test_names_are_short_and_tell_apart(overrides, name):
    assert spelled(overrides) == name


def test_a_long_name_is_cut():
    name = joined("gpt2_tiny/pydocs", spelled(f"trainer.key_{number}=1" for number in range(20)))
    assert len(name) == MAX_NAME_CHARS
    assert name.endswith("…")


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("python train.py model=gpt2_small seed=2 paths.outputs=/o tracker.uri=x", ["seed=2"]),
        ("gpt2x train model.num_layers=2 '~lora' --config-dir=conf resume=auto", ["model.num_layers=2", "~lora"]),
        ("python train.py +experiment=finetune_small hydra.run.dir=x", ["+experiment=finetune_small"]),
        ("python train.py 'generation.prompt=\"a b\"'", ['generation.prompt="a b"']),
        ("python train.py 'unclosed", []),
        ("pytest -n 0 tests", []),
    ],
)
def test_overrides_are_read_from_the_command(command, overrides):
    assert typed_overrides(command) == overrides


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("/usr/bin/python3 train.py seed=1", "train.py"),
        ("gpt2x evaluate load=x.py", "gpt2x evaluate"),
        ("python -m gpt2x train", "gpt2x train"),
        ("torchrun", "torchrun"),
        ("", ""),
    ],
)
def test_the_source_is_what_was_typed(command, name):
    assert source_name(command) == name


def test_a_sweep_is_called_by_its_directory_and_what_varies(tmp_path):
    values = {"number": 0, "overrides": [], "varied": ["optimizer.learning_rate=0.1", "+seed=1"], "run_dir": "x"}
    (tmp_path / JOB).write_text(json.dumps(values | {"sweep_dir": str(tmp_path)}))
    sweep_dir = tmp_path / "sweep_1"
    assert sweep_name(sweep_dir, read_job(tmp_path)) == "sweep_1: optimizer.learning_rate, seed"
    assert sweep_name(sweep_dir, read_job(tmp_path), "rates") == "rates sweep_1: optimizer.learning_rate, seed"
    assert sweep_name(sweep_dir, None) == "sweep_1"


def test_where_data_come_from(tmp_path):
    dataset = DatasetConfig(name="text", corpus="text", path=str(tmp_path), val_path=str(tmp_path / "val.txt"))
    assert data_source(dataset, "train") == str(tmp_path)
    assert data_source(dataset, "val") == str(tmp_path / "val.txt")
    assert data_source(DatasetConfig(name="w", corpus="wikitext2", url="https://x/y"), "train") == "https://x/y"
    assert data_source(DatasetConfig(name="pydocs", corpus="pydocs"), "val") == "pydocs"
