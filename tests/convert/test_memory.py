"""Conversion of what does not fit one file, or memory."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gpt2x.checkpoint.tensors import write_safetensors
from gpt2x.config import ModelConfig
from gpt2x.convert import load_source
from gpt2x.convert.huggingface_config import config_from_model
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.model.stats import tensor_shapes
from tests.commands import convert as main

MODEL = ModelConfig(name="tiny", num_layers=2, num_heads=2, hidden_size=8, max_seq_len=16, vocab_size=32)


def write_huggingface(folder, model):
    rng = np.random.default_rng(0)
    weights = {name: rng.random(shape, np.float32) for name, shape in tensor_shapes(model).items()}
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", weights)
    (folder / "config.json").write_text(json.dumps(config_from_model(model, SpecialIds({}, {}), dtype="float32")))
    return weights


def test_large_weights_are_written_as_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2x.checkpoint.write.FILE_BYTES", 3000)
    weights = write_huggingface(tmp_path / "a", MODEL)
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert main(["--to", "hf", "--output", str(tmp_path / "c"), str(tmp_path / "b")]) == 0
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values())
    files = {path.name for path in (tmp_path / "c").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 2
    for form in "bc":
        loaded = load_source(tmp_path / form).weights()
        assert list(loaded) == list(weights)  # so that files are the same whichever way they came
        assert {name: value.tobytes() for name, value in loaded.items()} == {
            name: value.tobytes() for name, value in weights.items()
        }


@pytest.mark.parity
def test_transformers_reads_the_shards(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("gpt2x.checkpoint.write.FILE_BYTES", 3000)
    weights = write_huggingface(tmp_path / "a", MODEL)
    assert main(["--to", "hf", "--output", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    state = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "b").state_dict()
    for name, value in weights.items():
        assert state[f"transformer.{name}"].numpy().tobytes() == value.tobytes(), name


CONVERT = """
import resource, sys
from tests.commands import convert as main
from gpt2x.config.options import known_models
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert main(sys.argv[1:]) == 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.launch
def test_memory_does_not_grow_with_the_model(tmp_path):
    model = ModelConfig(name="wide", num_layers=1, num_heads=2, hidden_size=512, max_seq_len=16, vocab_size=65536)
    write_huggingface(tmp_path / "a", model)  # 148 MB, of which the embedding is 134
    for source, kind, output in (("a", "gpt2x", "b"), ("b", "hf", "c")):
        command = [
            sys.executable,
            "-c",
            CONVERT,
            "--to",
            kind,
            "--output",
            str(tmp_path / output),
            str(tmp_path / source),
        ]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert int(output.splitlines()[-1]) < 70, "MB"
