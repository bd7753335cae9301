"""Damaged files in the cache of the Hugging Face hub, by each way in which gpt2x reads them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt2x.convert import load_source
from gpt2x.data.reading.files import hash_files
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.lora.open import open_adapter
from tests.support.hub import fill_cache
from tests.support.huggingface import TINY, state_of, write_config, write_weights

DAMAGED = "is damaged: its content does not have the hash"


def flip(path):
    """Flip a bit in the middle of a file, where a file of weights has values."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def snapshot_of(tmp_path, form="safetensors"):
    write_config(tmp_path / "model", TINY)
    write_weights(tmp_path / "model", state_of(TINY), form)
    return fill_cache(tmp_path / "cache", "a/b", tmp_path / "model")


@pytest.mark.parametrize("form", ["safetensors", "zip", "safetensors shards"])
def test_weights(tmp_path, form):
    snapshot = snapshot_of(tmp_path, form)
    files = sorted(file for file in snapshot.rglob("*") if file.suffix in (".safetensors", ".bin"))
    load_source(snapshot)
    flip(files[-1])
    source = load_source(snapshot, verify=False)  # of a process that leaves the hashes to another
    with pytest.raises(UserError, match=f"{files[-1].name} {DAMAGED}"):
        source.verify()
    with pytest.raises(UserError, match=f"{files[-1].name} {DAMAGED}"):
        load_source(snapshot)
    cut(files[-1])
    with pytest.raises(UserError, match=f"{files[-1].name} {DAMAGED}"):
        load_source(snapshot, verify=False)


def test_an_index_of_shards(tmp_path):
    snapshot = snapshot_of(tmp_path, "safetensors shards")
    cut(snapshot / "model.safetensors.index.json")
    with pytest.raises(UserError, match=f"model.safetensors.index.json {DAMAGED}"):
        load_source(snapshot, verify=False)


def test_a_configuration(tmp_path):
    snapshot = snapshot_of(tmp_path)
    config = snapshot / "config.json"
    text = config.read_text()
    for damaged in (text.replace('"eos_token_id": 0', '"eos_token_id": 1'), text[:-9], ""):
        config.write_text(damaged)
        with pytest.raises(UserError, match=f"config.json {DAMAGED}"):
            load_source(snapshot, verify=False)


def test_a_tokenizer(tmp_path):
    byte_level_bpe.train(iter(["the cat sat on the mat"]), 270).save(tmp_path / "tokenizer")
    snapshot = fill_cache(tmp_path / "cache", "a/b", tmp_path / "tokenizer")
    for path in (snapshot, *snapshot.glob("tokenizer.json")):
        Tokenizer.load(path)
    file = next(file for name in ("merges.txt", "tokenizer.json") if (file := snapshot / name).exists())
    cut(file)
    with pytest.raises(UserError, match=f"{file.name} {DAMAGED}"):
        Tokenizer.load(snapshot)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter(tmp_path, file):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM",
              "fan_in_fan_out": True}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model.transformer.h.0.attn.c_attn"
    factors = {f"{prefix}.lora_A.weight": np.ones((2, 8), np.float32),
               f"{prefix}.lora_B.weight": np.ones((24, 2), np.float32)}  # fmt: skip
    save_file(factors, folder / "adapter_model.safetensors")
    snapshot = fill_cache(tmp_path / "cache", "a/b", folder)
    open_adapter(snapshot)
    flip(snapshot / file)
    with pytest.raises(UserError, match=f"{file} {DAMAGED}"):
        open_adapter(snapshot)


@pytest.mark.parametrize("name", ["text.txt", "data.bin"])
def test_data(tmp_path, name):
    """A data set of the hub that `dataset.path` names by its file."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_text("some text\n" * 50)
    path = fill_cache(tmp_path / "cache", "a/b", folder) / name
    before = hash_files([path])
    assert before == hash_files([folder / name])
    flip(path)
    with pytest.raises(UserError, match=f"{name} {DAMAGED}"):
        hash_files([path])
