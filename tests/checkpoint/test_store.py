"""The checkpoint directory: exact, atomic, verified; every fault a clear message."""

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt2x.checkpoint import list_checkpoints, open_checkpoint, prune, require_writable, save
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from tests.commands import checkpoint as main

MODEL = ModelConfig(name="tiny", num_layers=1, num_heads=1, hidden_size=4, max_seq_len=8, vocab_size=16)
FLOATS = [0.1, 1 / 3, 1e-310, 65536.0, float(np.float32(0.1)), float("inf")]
LOOP_STATE = {"step": 7, "floats": FLOATS, "numpy": np.float32(1.5), "where": Path("x")}


def tensors(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "weights": {"wte.weight": rng.normal(size=(16, 4)).astype(np.float32), "half": np.ones((3,), np.float16)},
        "optimizer": {
            "m.wte.weight": rng.normal(size=(4, 16)).astype(np.float32).T,  # not contiguous
            "count": np.array(7, np.int32),
            "empty": np.zeros((0, 4), np.float64),
        },
    }


def write(directory, seed=0, **changes):
    settings = {
        "tensors": tensors(seed),
        "model": MODEL,
        "run_config": {"seed": 1, "trainer": {"max_steps": None}},
        "loop_state": LOOP_STATE,
        "tokenizer_dir_writer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    }
    save(directory, **(settings | changes))
    return directory


def test_comes_back_bit_for_bit(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "checkpoints" / "step_7"))
    checkpoint.verify()
    assert checkpoint.model == MODEL
    assert checkpoint.run_config == {"seed": 1, "trainer": {"max_steps": None}}
    assert checkpoint.loop_state == {"step": 7, "floats": FLOATS, "numpy": 1.5, "where": "x"}
    assert checkpoint.tokenizer_dir.joinpath("tokenizer.json").read_text() == "{}"
    assert checkpoint.groups() == ["weights", "optimizer"]
    for group, values in tensors().items():
        assert checkpoint.names(group) == list(values)
        for name, expected in values.items():
            actual = checkpoint.tensor(group, name)
            assert checkpoint.shape(group, name) == actual.shape == expected.shape
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)
        assert checkpoint.tensors(group).shapes == {name: value.shape for name, value in values.items()}
    assert "seed: 1" in (checkpoint.path / "config.yaml").read_text()
    assert not [path.name for path in checkpoint.path.parent.iterdir() if path.name.startswith(".")]
    assert open_checkpoint(write(tmp_path / "plain", tokenizer_dir_writer=None)).tokenizer_dir is None
    with pytest.raises(UserError, match="holds no lora"):
        checkpoint.names("lora")


def test_a_tensor_in_several_slices_is_put_together(tmp_path):
    path = write(tmp_path / "step_1")
    whole = tensors()["weights"]["wte.weight"]
    manifest = json.loads((path / "manifest.json").read_text())
    slices = []
    for rank, rows in enumerate((slice(0, 10), slice(10, 16))):
        file = f"weights-{rank}.safetensors"
        save_file({"wte.weight": np.ascontiguousarray(whole[rows])}, path / file)
        slices.append({"file": file, "start": [rows.start, 0], "shape": list(whole[rows].shape)})
    manifest["groups"]["weights"]["wte.weight"]["slices"] = slices
    checkpoint = open_checkpoint(path)
    checkpoint.manifest = manifest
    np.testing.assert_array_equal(checkpoint.tensor("weights", "wte.weight"), whole)


def test_replaces_an_existing_one_only_when_complete(tmp_path):
    path = write(tmp_path / "step_1", seed=0)

    def die(folder):
        assert open_checkpoint(path).loop_state["step"] == 7  # still there while the new one is written
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, seed=1, tokenizer_dir_writer=die)
    open_checkpoint(path).verify()
    np.testing.assert_array_equal(
        open_checkpoint(path).tensor("weights", "wte.weight"), tensors(0)["weights"]["wte.weight"]
    )
    write(path, seed=1)
    np.testing.assert_array_equal(
        open_checkpoint(path).tensor("weights", "wte.weight"), tensors(1)["weights"]["wte.weight"]
    )
    assert os.listdir(tmp_path) == ["step_1"]


def test_a_killed_writer_leaves_what_was_there(tmp_path):
    path = write(tmp_path / "checkpoints" / "step_1")
    for step in (1, 2):  # replacing the old one, and adding one
        child = os.fork()
        if child == 0:
            try:
                write(tmp_path / "checkpoints" / f"step_{step}", seed=1, tokenizer_dir_writer=lambda _: os._exit(9))
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert list_checkpoints(tmp_path) == [path]
        open_checkpoint(path).verify()
    assert len(os.listdir(path.parent)) == 3
    assert prune(tmp_path, 1) == []
    assert os.listdir(path.parent) == ["step_1"]


def test_files_have_the_mode_of_new_files(tmp_path):
    (tmp_path / "new").touch()
    modes = {file.stat().st_mode for file in write(tmp_path / "step_1").iterdir() if file.is_file()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_a_full_disk_leaves_the_old_one(tmp_path):
    path = write(tmp_path / "step_1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*step_1 .*nothing there has changed\. Free space"):
            write(path, tensors={"weights": {"big": np.zeros(100_000, np.float32)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    open_checkpoint(path).verify()
    assert os.listdir(tmp_path) == ["step_1"]


def test_only_plain_data_is_stored(tmp_path):
    with pytest.raises(TypeError, match="plain data, not object"):
        write(tmp_path / "step_1", loop_state={"what": object()})
    assert os.listdir(tmp_path) == []


def truncate(path):
    os.truncate(path / "weights.safetensors", 50)


def lengthen(path):
    with (path / "optimizer.safetensors").open("ab") as stream:
        stream.write(b"x")


def flip_bit(path):
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)


def edit_manifest(**changes):
    def edit(path):
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(manifest | changes))

    return edit


FAULTS = {
    "does not exist. Give a directory like": shutil.rmtree,
    "has no manifest.json: it is not a checkpoint, or was never completed": lambda p: (p / "manifest.json").unlink(),
    "manifest.json cannot be read, it is not JSON.*Copy": lambda p: (p / "manifest.json").write_text('{"format": '),
    "is not a gpt2x manifest": lambda p: (p / "manifest.json").write_text("[]"),
    "format version 99, but this gpt2x reads 1": edit_manifest(version=99),
    "manifest.json was altered": edit_manifest(loop_state={"step": 8}),
    "weights.safetensors is missing": lambda p: (p / "weights.safetensors").unlink(),
    r"weights.safetensors is truncated \(50 bytes instead of": truncate,
    "optimizer.safetensors is longer than": lengthen,
    "weights.safetensors was altered after it was written.*use a different": flip_bit,
}


@pytest.mark.parametrize("message", FAULTS)
def test_faults(tmp_path, message):
    path = write(tmp_path / "step_1")
    FAULTS[message](path)
    with pytest.raises(UserError, match=f"checkpoint {path}.*{message}|checkpoint {path}:? {message}"):
        open_checkpoint(path).verify()


def test_a_file_and_a_run_directory(tmp_path):
    path = write(tmp_path / "run" / "checkpoints" / "step_1")
    with pytest.raises(UserError, match="is not a directory"):
        open_checkpoint(path / "manifest.json")
    with pytest.raises(UserError, match=r"The newest complete one is .*step_1"):
        open_checkpoint(tmp_path / "run")


def test_list_and_prune(tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (100, 9, 20, 30, 40):
        write(folder / f"step_{step}")
    truncate(folder / "step_40")
    (folder / ".step_50.tmp-1").mkdir()
    (folder / "step_x").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_9", "step_20", "step_30", "step_100"]
    assert [path.name for path in prune(tmp_path, 2, best=9)] == ["step_20"]
    assert sorted(os.listdir(folder)) == ["step_100", "step_30", "step_40", "step_9", "step_x"]
    assert [path.name for path in prune(tmp_path, 1)] == ["step_9", "step_30"]
    assert list_checkpoints(tmp_path / "nowhere") == []
    with pytest.raises(UserError, match="keep_last=0"):
        prune(tmp_path, 0)


def test_require_writable(tmp_path):
    require_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/folder is not writable .*paths.outputs"):
        require_writable(tmp_path / "file" / "folder")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "step_1")


def test_command(tmp_path, capsys):
    path = write(tmp_path / "step_1")
    assert main(["inspect", str(path)]) == 0
    assert "2 tensors, 67 values" in capsys.readouterr().out
    assert main(["verify", str(path)]) == 0
    assert "4 files intact" in capsys.readouterr().out
    flip_bit(path)
    assert main(["verify", str(path)]) == 2
    assert "altered" in capsys.readouterr().err
