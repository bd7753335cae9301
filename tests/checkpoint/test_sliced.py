"""Ranks write slices in agreement; any layout reads them; a fault on one rank leaves what was there."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from gpt2x.checkpoint import Sliced, list_checkpoints, open_checkpoint, prune, save, write
from gpt2x.checkpoint.reshard import owned_part
from gpt2x.checkpoint.tensors import LazyTensors, Spec
from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates, world_size
from gpt2x.config.options import read_option
from gpt2x.convert import check_weights, load_source
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes
from gpt2x.parallel.placement import local_weights, placements
from tests.checkpoint.ranks import save_in_ranks
from tests.commands import checkpoint as main

# 41 rows, padded to 48: of eight ranks the seventh holds five rows, the eighth none
MODEL = ModelConfig(
    name="tiny", num_layers=3, num_heads=8, hidden_size=16, max_seq_len=8, vocab_size=41, pad_vocab_multiple=8
)
SETTINGS = {
    "model": MODEL,
    "run_config": {"seed": 1},
    "loop_state": {"step": 7},
    "tokenizer_dir_writer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
}
LAYOUTS = ("tp2", "dp2_tp2_pp2", "zero2", "dp4_tp8", "tp8")


def weights(model=MODEL, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in tensor_shapes(model).items()}


def states(seed=1):
    return {f"{kind}.{name}": value for kind in ("mean", "square") for name, value in weights(seed=seed).items()}


def save_single(directory):
    save(directory, tensors={"weights": weights(), "optimizer": states()}, **SETTINGS)
    return directory


def save_sliced(directory, name):
    """As a trainer does: each rank has its local tensors, and writes the boxes that it owns of them."""
    parallel = read_option("parallel", name, ParallelConfig)

    def owned(values, coordinates, is_state):
        sliced = {}
        for key, value in values.items():
            weight = key.split(".", 1)[1] if is_state else key
            part = owned_part(weight, value.shape, MODEL, coordinates, is_state=is_state)
            if part is not None:
                local = local_weights({weight: value}, {weight: part})[weight]
                sliced[key] = Sliced(value.shape, part.parts(local))
        return sliced

    def tensors_of(rank):
        coordinates = Coordinates(parallel, rank)
        return {"weights": owned(weights(), coordinates, False), "optimizer": owned(states(), coordinates, True)}

    outcomes = save_in_ranks(directory, tensors_of, world_size(parallel), **SETTINGS)
    assert outcomes == [""] * world_size(parallel)
    return directory


def content(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.run
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_there_and_back(tmp_path, name, capsys):
    single, sliced = save_single(tmp_path / "single"), save_sliced(tmp_path / "run" / "checkpoints" / "step_7", name)
    checkpoint = open_checkpoint(sliced)
    checkpoint.verify()
    for group, values in (("weights", weights()), ("optimizer", states())):
        assert set(checkpoint.names(group)) == set(values)
        for key, expected in values.items():
            assert checkpoint.tensor(group, key).tobytes() == expected.tobytes(), key

    other = read_option("parallel", "tp2_pp2" if name == "tp8" else "tp8", ParallelConfig)
    for rank in range(world_size(other)):
        parts = placements(MODEL, Coordinates(other, rank))
        expected = local_weights(weights(), parts)
        for lazy in (checkpoint.tensors("weights"), open_checkpoint(single).tensors("weights")):
            for key, part in parts.items():
                assert part.read(lazy, key).tobytes() == expected[key].tobytes(), key

    assert main(["merge", str(sliced), str(tmp_path / "merged")]) == 0
    assert content(tmp_path / "merged").keys() == content(single).keys()
    merged = open_checkpoint(tmp_path / "merged")
    assert all(merged.tensor("optimizer", key).tobytes() == value.tobytes() for key, value in states().items())
    assert main(["reshard", str(single), str(tmp_path / "again"), "--parallel", name]) == 0
    assert content(tmp_path / "again") == content(sliced)
    assert main(["verify", str(tmp_path / "again")]) == 0
    assert main(["inspect", str(sliced)]) == 0
    assert "slices" in capsys.readouterr().out
    assert list_checkpoints(tmp_path / "run") == [sliced]
    check_weights(load_source(tmp_path / "run").weights(), MODEL)
    save_single(sliced.with_name("step_8"))
    assert prune(tmp_path / "run", 1) == [sliced]


def test_names_of_files(tmp_path, monkeypatch):
    path = save_sliced(tmp_path / "two", "tp2")
    names = {"weights-00001-of-00002", "weights-00002-of-00002", "optimizer-00001-of-00002", "optimizer-00002-of-00002"}
    assert {file.stem for file in path.glob("*.safetensors")} == names
    assert {file.stem for file in save_single(tmp_path / "one").glob("*.safetensors")} == {"weights", "optimizer"}
    monkeypatch.setattr("gpt2x.checkpoint.write.FILE_BYTES", 20_000)
    path = save_single(tmp_path / "split")
    names = [f"weights.part-0000{n}-of-00003" for n in (1, 2, 3)]
    assert [file.stem for file in sorted(path.glob("weights*"))] == names
    assert all(file.stat().st_size < 23_000 for file in path.glob("weights*"))
    open_checkpoint(path).verify()
    path = save_sliced(tmp_path / "sliced", "tp2")
    assert (path / "weights-00002-of-00002.part-00001-of-00002.safetensors").is_file()
    open_checkpoint(path).verify()


def failing(error):
    def read(name, start, shape):
        raise error

    return LazyTensors({"b": Spec((4,), np.dtype(np.float32))}, read).box("b")


@pytest.mark.parametrize("bad", [0, 2])
def test_a_rank_that_fails_leaves_the_old_one(tmp_path, bad):
    path = save_sliced(tmp_path / "step_7", "tp2")
    before = content(path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def tensors_of(rank):
        return {"weights": {"b" if rank == bad else f"a{rank}": failing(full) if rank == bad else np.ones(3)}}

    outcomes = save_in_ranks(path, tensors_of, 3, **SETTINGS)
    expected = (
        f"rank {bad}: cannot write {path} (No space left on device); nothing there has changed. Free space or give"
    )
    assert [outcome.startswith(expected) for outcome in outcomes] == [True] * 3
    assert content(path) == before
    assert os.listdir(tmp_path) == ["step_7"]


def test_a_first_rank_that_fails_at_the_end_frees_the_others(tmp_path):
    def fail(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = SETTINGS | {"tokenizer_dir_writer": fail}
    outcomes = save_in_ranks(tmp_path / "step_1", lambda rank: {"weights": {f"a{rank}": np.ones(3)}}, 3, **settings)
    assert ["rank 0: cannot write" in outcome for outcome in outcomes] == [True] * 3
    assert os.listdir(tmp_path) == []


def test_remains_of_a_crash_are_no_part_of_the_next(tmp_path):
    path = tmp_path / "checkpoints" / "step_7"
    remains = path.with_name(".step_7.tmp-1234")
    save_sliced(path, "tp2")
    path.rename(path.with_name(".step_7.old-1234"))  # killed between two renames
    remains.mkdir()
    (remains / "weights-00001-of-00003.safetensors").write_bytes(b"half")
    (remains / "index-00001-of-00002.json").write_text("{")
    outcomes = save_in_ranks(path, lambda rank: {"weights": {"b": failing(OSError("full"))}}, 2, **SETTINGS)
    assert all("cannot write" in outcome for outcome in outcomes)
    assert prune(tmp_path, 1) == []
    open_checkpoint(path).verify()  # the old one is back
    save_sliced(path, "tp2")
    open_checkpoint(path).verify()
    assert os.listdir(path.parent) == ["step_7"]


VALUES = np.arange(12, dtype=np.float32).reshape(6, 2)
WRONG_SLICES = {
    "overlap": [(0, VALUES[:4]), (3, VALUES[3:])],
    "hold 8 of 12 values": [(0, VALUES[:2]), (4, VALUES[4:])],
    "reach beyond it": [(0, VALUES[:3]), (4, VALUES[3:])],
    "a different shape or dtype": [(0, VALUES[:3]), (3, VALUES[3:].astype(np.float16))],
}


@pytest.mark.parametrize("fault", WRONG_SLICES)
def test_wrong_slices_are_rejected(tmp_path, fault):
    def tensors_of(rank):
        start, values = WRONG_SLICES[fault][rank]
        return {"weights": {"a": Sliced((6, 2), [((start, 0), values)])}}

    outcomes = save_in_ranks(tmp_path / "step_1", tensors_of, 2, **SETTINGS)
    assert isinstance(outcomes[0], ValueError)
    assert fault in str(outcomes[0])
    assert fault in outcomes[1]
    assert os.listdir(tmp_path) == []


def test_a_rank_on_another_file_system(tmp_path, monkeypatch):
    index = write._index_path
    monkeypatch.setattr(write, "_index_path", lambda folder, rank, size: index(tmp_path / "seen", rank, size))
    monkeypatch.setattr("gpt2x.checkpoint.writer.write_slices", lambda *_: None)
    monkeypatch.setattr("gpt2x.checkpoint.writer.VISIBLE_S", 0.1)
    outcomes = save_in_ranks(tmp_path / "step_1", lambda rank: {}, 2, **SETTINGS)
    assert ["All processes need one shared file system" in outcome for outcome in outcomes] == [True, True]


def run(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_wrong_input(tmp_path, capsys):
    path = save_single(tmp_path / "step_7")
    new = tmp_path / "new"
    assert "exists. Nothing was written" in run(capsys, "merge", path, path)
    assert "exists. Nothing was written" in run(capsys, "reshard", path, tmp_path, "--parallel", "tp2")
    assert "tp3 is not an option; options: dp2" in run(capsys, "reshard", path, new, "--parallel", "tp3")
    assert "has no manifest.json" in run(capsys, "merge", tmp_path, new)
    (tmp_path / "config.json").write_text("{}")
    assert "gpt2x convert --to gpt2x" in run(capsys, "merge", tmp_path, new)
    assert "does not exist" in run(capsys, "merge", tmp_path / "x", new)
    narrow = tmp_path / "narrow"
    model = replace(MODEL, num_heads=2)
    save(narrow, tensors={"weights": weights(model)}, **(SETTINGS | {"model": model}))
    assert "num_heads=2 is not divisible by parallel.tensor=8" in run(
        capsys, "reshard", narrow, new, "--parallel", "tp8"
    )
    assert "exceed model.num_layers=3" in run(capsys, "reshard", path, new, "--parallel", "dp8_pp16")
    sliced = save_sliced(tmp_path / "sliced", "tp8")
    damaged = sliced / "weights-00003-of-00008.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    for command in (("verify", sliced), ("merge", sliced, new), ("reshard", sliced, new, "--parallel", "tp2")):
        assert "weights-00003-of-00008.safetensors was altered" in run(capsys, *command)
    assert not new.exists()
    shutil.rmtree(sliced)


def test_a_vocabulary_is_padded_as_the_layout_needs(tmp_path):
    model = replace(MODEL, pad_vocab_multiple=1)
    save(tmp_path / "a", tensors={"weights": weights(model)}, **(SETTINGS | {"model": model}))
    assert main(["reshard", str(tmp_path / "a"), str(tmp_path / "b"), "--parallel", "tp8"]) == 0
    resharded = open_checkpoint(tmp_path / "b")
    assert resharded.model == model
    assert resharded.tensor("weights", "wte.weight").tobytes() == weights()["wte.weight"].tobytes()


def test_a_manifest_that_names_other_slices(tmp_path):
    path = save_sliced(tmp_path / "step_7", "tp2")
    entries = json.loads((path / "manifest.json").read_text())["groups"]["weights"]
    for change, message in (
        (lambda entry: entry["slices"].pop(), "hold"),
        (lambda entry: entry["slices"].append(entry["slices"][0]), "overlap"),
        (lambda entry: entry["slices"][0].update(key="other"), "does not hold other"),
        (lambda entry: entry["slices"][0].update(shape=[1, 1]), "does not hold"),
    ):
        checkpoint = open_checkpoint(path)
        change(checkpoint.manifest["groups"]["weights"]["wte.weight"])
        with pytest.raises(UserError, match=message):
            checkpoint.verify()
    assert len(entries["h.0.attn.c_attn.weight"]["slices"]) == 6
