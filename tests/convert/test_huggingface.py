"""Hugging Face directories in every form transformers writes, both ways; every wrong one a clear message."""

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gpt2x.config import ModelConfig
from gpt2x.config.options import known_models
from gpt2x.convert import check_model_matches, check_weights, load_source
from gpt2x.convert.huggingface_config import config_from_model, model_from_config
from gpt2x.convert.special_ids import special_ids_of_tokenizer
from gpt2x.convert.tokenizer_files import special_ids
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes
from tests.commands import convert as main

TINY = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 32}
TINY_MODEL = ModelConfig(name="tiny", num_layers=2, num_heads=2, hidden_size=8, max_seq_len=16, vocab_size=32)


def tiny_weights(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in tensor_shapes(TINY_MODEL).items()}


@pytest.fixture
def tiny_dir(tmp_path):
    """A sound directory without the prefix, written without torch."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY))
    save_file(tiny_weights(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def torch_model():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{k: v for k, v in TINY.items() if k != "model_type"})
    )
    return model.eval()


def assert_same_bits(actual, expected):
    assert set(actual) == set(expected)
    for name in expected:
        assert actual[name].dtype == expected[name].dtype, name
        assert actual[name].shape == expected[name].shape, name
        assert actual[name].tobytes() == expected[name].tobytes(), name


def logical(state):
    return {
        name.removeprefix("transformer."): value.detach().numpy()
        for name, value in state.items()
        if name != "lm_head.weight"
    }


def save_torch(state, folder, **settings):
    import torch

    torch.save(state, folder / "pytorch_model.bin", **settings)


def save_two_bins(state, folder):
    import torch

    names = list(state)
    files = {name: f"pytorch_model-{1 + (i > 5):05}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: state[name] for name in names if files[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


FORMS = {
    "safetensors": lambda model, folder: model.save_pretrained(folder),
    "sharded": lambda model, folder: model.save_pretrained(folder, max_shard_size="4KB"),
    "without_prefix": lambda model, folder: model.transformer.save_pretrained(folder),
    "bin": lambda model, folder: save_torch(model.state_dict(), folder),
    "bin_legacy": lambda model, folder: save_torch(model.state_dict(), folder, _use_new_zipfile_serialization=False),
    "bin_without_prefix": lambda model, folder: save_torch(model.transformer.state_dict(), folder),
    "bin_sharded": lambda model, folder: save_two_bins(model.state_dict(), folder),
}


@pytest.mark.parity
@pytest.mark.parametrize("form", FORMS)
def test_every_form_that_transformers_writes(torch_model, tmp_path, form):
    torch_model.config.save_pretrained(tmp_path)
    FORMS[form](torch_model, tmp_path)
    assert (form == "sharded") == (tmp_path / "model.safetensors.index.json").is_file()
    source = load_source(tmp_path)
    assert source.kind == "huggingface"
    assert source.tokenizer_dir is None
    assert (source.model.num_layers, source.model.vocab_size, source.model.tie_embeddings) == (2, 32, True)
    assert_same_bits(source.weights(), logical(torch_model.state_dict()))


@pytest.mark.parity
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(torch_model, tmp_path, dtype):
    import torch

    model = type(torch_model)(torch_model.config).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    state = {name: value.float() if dtype == "bfloat16" else value for name, value in model.state_dict().items()}
    assert_same_bits(load_source(tmp_path).weights(), logical(state))


@pytest.mark.parity
def test_untied_head(torch_model, tmp_path):
    config = type(torch_model.config)(**torch_model.config.to_dict() | {"tie_word_embeddings": False})
    model = type(torch_model)(config)
    model.save_pretrained(tmp_path / "hf")
    source = load_source(tmp_path / "hf")
    assert not source.model.tie_embeddings
    head = model.lm_head.weight.detach().numpy()
    assert source.weights()["lm_head.weight"].tobytes() == head.tobytes()
    assert main(["--to", "hf", "--output", str(tmp_path / "out"), str(tmp_path / "hf")]) == 0
    again = type(torch_model).from_pretrained(tmp_path / "out")
    assert again.lm_head.weight.detach().numpy().tobytes() == head.tobytes()


@pytest.mark.parity
def test_import_export_import(shared_data, tmp_path):
    """A trained model through gpt2x and back: equal bits, and logits that are transformers' own."""
    transformers = pytest.importorskip("transformers")
    import torch

    original = shared_data / "checkpoints" / "shakespeare-a"
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "gpt2x"), str(original)]) == 0
    assert main(["--to", "hf", "--output", str(tmp_path / "hf"), str(tmp_path / "gpt2x")]) == 0
    first, second, third = (load_source(path) for path in (original, tmp_path / "gpt2x", tmp_path / "hf"))
    assert (first.kind, second.kind, third.kind) == ("huggingface", "gpt2x", "huggingface")
    assert first.model == second.model
    assert vars(third.model) == vars(first.model) | {"name": "hf_hf"}
    assert_same_bits(second.weights(), dict(first.weights()))
    assert_same_bits(third.weights(), dict(first.weights()))

    ids = torch.randint(0, 1000, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = transformers.GPT2LMHeadModel.from_pretrained(original).eval()(ids).logits
        logits = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()(ids).logits
    assert torch.equal(logits, expected)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert (config.bos_token_id, config.eos_token_id, str(config.dtype)) == (0, 0, "torch.float32")
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert (
        tokenizer("To be, or not")["input_ids"]
        == transformers.AutoTokenizer.from_pretrained(original)("To be, or not")["input_ids"]
    )
    metadata_free = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(name.startswith("transformer.") for name in metadata_free)


@pytest.mark.parametrize("name", ["shakespeare-a", "lyrics", "horoscope-tarot"])
def test_trained_checkpoints(shared_data, name):
    source = load_source(shared_data / "checkpoints" / name)
    assert source.model.name == f"hf_{name}"
    assert source.tokenizer_dir == source.path
    assert sum(values.size for values in source.weights().values()) == 929_536
    assert special_ids(source.tokenizer_dir)["eos_token"] == 0


@pytest.mark.parity
@pytest.mark.parametrize("ours", ["gelu_new", "gelu", "fast_gelu"])
def test_config_survives_both_ways_and_transformers(tmp_path, ours):
    transformers = pytest.importorskip("transformers")
    model = ModelConfig(
        name=f"hf_{tmp_path.name}", num_layers=3, num_heads=4, hidden_size=16, max_seq_len=32, vocab_size=100,
        ffn_size=24, activation=ours, layer_norm_eps=1e-6, dropout=0.2, embedding_dropout=0.0, attention_dropout=0.3,
        initializer_range=0.01, tie_embeddings=False,
    )  # fmt: skip
    config = config_from_model(model, special_ids_of_tokenizer(5, is_classifier=False), dtype="float32")
    assert model_from_config(config, tmp_path) == model
    theirs = transformers.GPT2Config(**config)
    assert {key: getattr(theirs, key, None) for key in config if key != "torch_dtype"} == {
        key: value for key, value in config.items() if key != "torch_dtype"
    }
    theirs.save_pretrained(tmp_path)
    assert model_from_config(json.loads((tmp_path / "config.json").read_text()), tmp_path) == model


def test_known_sizes_carry_the_options_name(tmp_path):
    assert model_from_config({"model_type": "gpt2"}, tmp_path).name == "gpt2_small"
    xl = {"architectures": ["GPT2LMHeadModel"], "num_hidden_layers": 48, "num_attention_heads": 25, "hidden_size": 1600}
    assert model_from_config(xl, tmp_path).name == "gpt2_xl"
    synonyms = {name: model_from_config(TINY | {"activation_function": name}, tmp_path).activation for name in
                ("gelu_pytorch_tanh", "gelu_fast", "quick_gelu", "gelu")}  # fmt: skip
    assert synonyms == {
        "gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new", "quick_gelu": "fast_gelu", "gelu": "gelu",
    }  # fmt: skip


WRONG_CONFIGS = {
    r"model_type='llama', but gpt2x loads only 'gpt2'": {"model_type": "llama"},
    r"model_type=None": {"model_type": None},
    r"scale_attn_by_inverse_layer_idx=1; write true or false": {"scale_attn_by_inverse_layer_idx": 1},
    r"scale_attn_weights=null; write true or false": {"scale_attn_weights": None},
    r"add_cross_attention=True": {"add_cross_attention": True},
    r"activation_function='relu', but gpt2x has only gelu_new, ": {"activation_function": "relu"},
    r"n_layer='2'; it must be a positive whole number": {"n_layer": "2"},
    r"n_embd=8, which is not divisible by n_head=3": {"n_head": 3},
    r"resid_pdrop=None": {"resid_pdrop": None},
    r"n_inner=0": {"n_inner": 0},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_wrong_configs(tiny_dir, message):
    (tiny_dir / "config.json").write_text(json.dumps(TINY | WRONG_CONFIGS[message]))
    with pytest.raises(UserError, match=f"load={tiny_dir}: config.json has {message}"):
        load_source(tiny_dir)


def test_all_wrong_names_in_one_error(tiny_dir):
    weights = tiny_weights()
    del weights["ln_f.bias"], weights["h.1.attn.c_attn.weight"]
    weights["lm_head.bias"] = np.zeros(32, np.float32)
    weights["h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    weights["wpe.weight"] = np.zeros((8, 8), np.float32)
    weights["h.0.mlp.c_fc.weight"] = weights["h.0.mlp.c_fc.weight"].T.copy()
    save_file(weights, tiny_dir / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_source(tiny_dir)
    text = str(caught.value)
    assert "\n  missing: h.1.attn.c_attn.weight, ln_f.bias\n  unexpected: lm_head.bias\n  mis-shaped: " in text
    assert "wpe.weight (8, 8) instead of (16, 8), h.0.mlp.c_fc.weight (32, 8) instead of (8, 32)" in text
    assert "nothing was loaded" in text
    check_weights(tiny_weights(), TINY_MODEL)


def test_a_tied_head_that_differs_is_said(tiny_dir, caplog):
    weights = tiny_weights()
    save_file(weights | {"lm_head.weight": weights["wte.weight"]}, tiny_dir / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        load_source(tiny_dir)
        assert not caplog.records
        save_file(weights | {"lm_head.weight": weights["wte.weight"] + 1}, tiny_dir / "model.safetensors")
        source = load_source(tiny_dir)
    assert not source.model.tie_embeddings
    assert_same_bits(source.weights(), weights | {"lm_head.weight": weights["wte.weight"] + 1})
    assert "differs from wte.weight and is used as the head" in caplog.text


def remove_weights(folder):
    (folder / "model.safetensors").unlink()


def write_index(content):
    def write(folder):
        remove_weights(folder)
        (folder / "model.safetensors.index.json").write_text(content)

    return write


def truncate(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-10])


def twice(folder):
    weights = tiny_weights()
    save_file(weights | {"transformer.ln_f.bias": weights["ln_f.bias"]}, folder / "model.safetensors")


WRONG_DIRECTORIES = {
    "does not exist": shutil.rmtree,
    "config.json is not JSON": lambda folder: (folder / "config.json").write_text("{"),
    "config.json holds a list": lambda folder: (folder / "config.json").write_text("[]"),
    "is neither a gpt2x checkpoint .*none of these files exists": lambda folder: (folder / "config.json").unlink(),
    "no weights: none of model.safetensors, .*pytorch_model.bin.*Copy or download": remove_weights,
    "names absent.safetensors, which the directory does not contain": write_index(
        '{"weight_map": {"a": "absent.safetensors"}}'
    ),
    "names '../x.safetensors', which is outside of the directory": write_index(
        '{"weight_map": {"a": "../x.safetensors"}}'
    ),
    "has no weight_map": write_index("{}"),
    "truncated or not a safetensors file .*Copy or download it again": truncate,
    "ln_f.bias occurs twice, with and without": twice,
}


@pytest.mark.parametrize("message", WRONG_DIRECTORIES)
def test_wrong_directories(tiny_dir, message):
    WRONG_DIRECTORIES[message](tiny_dir)
    with pytest.raises(UserError, match=message):
        load_source(tiny_dir)


def test_a_file_and_a_run_directory(tiny_dir, monkeypatch):
    with pytest.raises(UserError, match="is a file"):
        load_source(tiny_dir / "config.json")
    step = tiny_dir.parent / "run" / "checkpoints" / "step_1"
    assert main(["--to", "gpt2x", "--output", str(step), str(tiny_dir)]) == 0
    later = step.with_name("step_12")
    assert main(["--to", "gpt2x", "--output", str(later), str(tiny_dir.parent / "run")]) == 0
    assert load_source(tiny_dir.parent / "run").path == later
    (later / "weights.safetensors").unlink()
    assert load_source(tiny_dir.parent / "run").path == step
    monkeypatch.setenv("HOME", str(tiny_dir.parent))
    assert load_source("~/run").path == step
    assert load_source("~/tiny").path == tiny_dir


def test_an_altered_checkpoint_is_rejected(tiny_dir, tmp_path):
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "out"), str(tiny_dir)]) == 0
    file = tmp_path / "out" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="was altered"):
        load_source(tmp_path / "out")


def test_nothing_is_overwritten(tiny_dir, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["--to", "hf", "--output", str(tmp_path / "out"), str(tiny_dir)]) == 2
    assert "not an empty directory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    assert main(["--to", "hf", "--output", str(tmp_path / "out"), str(tiny_dir)]) == 0
    assert (tmp_path / "out" / "config.json").is_file()


def test_eos_id(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0, "<|endoftext|>": 1, "</s>": 2}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    assert special_ids(tmp_path)["eos_token"] == 1
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    assert special_ids(tmp_path)["eos_token"] == 0
    (tmp_path / "config.json").unlink()
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
    assert special_ids(tmp_path)["eos_token"] == 2
    (tmp_path / "special_tokens_map.json").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "a"}')
    assert special_ids(tmp_path)["eos_token"] == 0


@pytest.mark.parametrize("eos", ["<|endoftext|>", "</s>"])
def test_eos_that_only_config_json_names_survives(tiny_dir, tmp_path, eos):
    """Both ways, though config.json is no file of the tokenizer."""
    vocabulary = {eos: 3} | {character: i for i, character in enumerate("abc")}
    (tiny_dir / "vocab.json").write_text(json.dumps(vocabulary))
    (tiny_dir / "merges.txt").write_text("#version: 0.2\n")
    (tiny_dir / "config.json").write_text(json.dumps(TINY | {"eos_token_id": 3}))
    assert Tokenizer.load(tiny_dir).eos_token == eos
    for kind, source in (("gpt2x", tiny_dir), ("hf", tmp_path / "gpt2x")):
        assert main(["--to", kind, "--output", str(tmp_path / kind), str(source)]) == 0
        assert Tokenizer.load(load_source(tmp_path / kind).tokenizer_dir).eos_id == 3
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "hf" / name).read_text())["eos_token_id"] == 3


def test_export_of_shakespeare_keeps_eos(shared_data, tmp_path):
    original = shared_data / "checkpoints" / "shakespeare-a"
    assert main(["--to", "gpt2x", "--output", str(tmp_path / "gpt2x"), str(original)]) == 0
    for number, source in enumerate((original, tmp_path / "gpt2x")):
        assert main(["--to", "hf", "--output", str(tmp_path / f"hf{number}"), str(source)]) == 0
        assert json.loads((tmp_path / f"hf{number}" / "config.json").read_text())["eos_token_id"] == 0
    assert Tokenizer.load(tmp_path / "gpt2x" / "tokenizer").fingerprint == Tokenizer.load(original).fingerprint


@pytest.mark.parametrize("name", known_models())
def test_sizes_of_conf_model_are_named(tmp_path, name):
    model = known_models()[name]
    model, ids = replace(model, vocab_size=model.vocab_size or 7), special_ids_of_tokenizer(0, is_classifier=False)
    config = config_from_model(model, ids, dtype="float32")
    assert model_from_config(config, tmp_path).name == name


def test_a_different_model_than_configured():
    options = {
        "gpt2_small": ModelConfig("gpt2_small", 12, 12, 768, 1024),
        "tiny": ModelConfig("tiny", 2, 2, 8, 16, None),
    }
    check_model_matches(options["tiny"], TINY_MODEL, "x", options)
    with pytest.raises(UserError) as caught:
        check_model_matches(options["gpt2_small"], TINY_MODEL, "x", options)
    assert str(caught.value) == (
        "load=x is a different model than model=gpt2_small: model.num_layers=12 (loaded: 2), model.num_heads=12 "
        "(loaded: 2), model.hidden_size=768 (loaded: 8), model.max_seq_len=1024 (loaded: 16), model.vocab_size=50257 "
        "(loaded: 32). Give model=tiny."
    )
    untied = ModelConfig("x", 2, 2, 8, 16, 32, ffn_size=9, tie_embeddings=False)
    with pytest.raises(UserError, match=r"Give model\.ffn_size=9 model\.tie_embeddings=false\.$"):
        check_model_matches(options["tiny"], untied, "x", options)


@pytest.mark.launch
def test_imports_no_framework():
    code = (
        "import sys, gpt2x.convert, gpt2x.commands.convert, gpt2x.commands.checkpoint;"
        "print({'mindspore', 'torch', 'transformers'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
