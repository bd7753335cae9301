"""Weights and config.json of Hugging Face directories: transformers' numbers, or one message for a listed reason."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from gpt2x.convert import load_source
from gpt2x.convert.huggingface_keys import ACTIVATIONS, CONFIG_KEYS
from gpt2x.errors import UserError
from tests.support.decide import refusal
from tests.support.huggingface import (
    FORMS,
    TINY,
    by_gpt2x,
    by_transformers,
    logits_of,
    state_of,
    write_config,
    write_weights,
)
from tests.support.in_process import run

pytestmark = pytest.mark.parity

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
# why gpt2x may reject what transformers loads
REASONS = (
    "which gpt2x does not support", "but gpt2x has only", "two names of one size", "unexpected:", "occurs twice",
    "computes a choice of one class", "give each class a name of its own", "must count from 0",
    "transformers has regression",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_transformers():
    pytest.importorskip("torch")
    pytest.importorskip("transformers").utils.logging.disable_progress_bar()


def assert_as_transformers(path: Path, reasons=REASONS) -> str:
    """Compare the logits; return how it went."""
    expected = by_transformers(path)
    logits, message = None, ""
    try:
        logits = by_gpt2x(path)
    except UserError as error:
        message = str(error)
    if logits is None:
        assert expected is None or any(reason in message for reason in reasons), message
        return "rejected by both" if expected is None else "rejected"
    assert expected is not None, "gpt2x loads what transformers does not"
    np.testing.assert_allclose(logits, expected, atol=2e-4 * max(1.0, np.abs(expected).max()))
    return "equal"


# ---- generated directories

KEYS = st.fixed_dictionaries(
    {},
    optional={
        "n_inner": st.sampled_from([None, 6, 32, 0, "8"]),
        "activation_function": st.sampled_from([*ACTIVATIONS, "relu", "gelu_10", "silu", "nope", None]),
        "layer_norm_epsilon": st.sampled_from([1e-5, 1e-6, 1e-12, 0.1]),
        "tie_word_embeddings": st.sampled_from([True, True, False, None]),
        "scale_attn_weights": st.sampled_from([True, False]),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
        "reorder_and_upcast_attn": st.booleans(),
        "add_cross_attention": st.sampled_from([False, False, False, True]),
        "num_hidden_layers": st.sampled_from([2, 2, 1]),
        "n_ctx": st.sampled_from([12, 1024]),
        "dtype": st.sampled_from(["float32", "float16"]),
        "torch_dtype": st.sampled_from(["float32", "bfloat16"]),
        "use_cache": st.booleans(),
        "resid_pdrop": st.sampled_from([0, 0.1, 0.5]),
        "summary_type": st.just("cls_index"),
        "pruned_heads": st.just({}),
        "task_specific_params": st.just({"text-generation": {"do_sample": True, "max_length": 50}}),
        "a_key_of_mine": st.just([1]),
        "quantization_config": st.none(),
    },
)
HEADS = st.sampled_from(["both", "equal", "head", "embedding", "none"])
PREFIXES = st.sampled_from(["with", "with", "without", "mixed"])
EXTRAS = st.lists(
    st.sampled_from(["masks", "score", "v_head", "multiple_choice_head", "unknown", "extra_state"]),
    max_size=2, unique=True,
)  # fmt: skip
ENTRIES = st.fixed_dictionaries({}, optional={"epoch": st.just(3), "note": st.just("x"), "args": st.just({"lr": 0.1})})
DTYPES = st.sampled_from(["float32", "float32", "float16", "bfloat16", "float64", "int8"])


def add(state, extra):
    import torch

    if extra == "masks":
        state["transformer.h.0.attn.bias"] = torch.tril(torch.ones(12, 12)).bool().view(1, 1, 12, 12)
        state["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
    elif extra == "extra_state":
        state["transformer.h.0._extra_state"] = torch.zeros(3)
    elif extra == "unknown":
        state["transformer.h.0.attn.rotary.inv_freq"] = torch.zeros(2)
    else:
        name = {"score": "score.weight", "v_head": "v_head.summary.weight"}.get(extra, f"{extra}.summary.weight")
        state.setdefault(name, torch.ones(1, 8))


def renamed(name: str, prefixes: str) -> str:
    drops = prefixes == "without" or (prefixes == "mixed" and ("mlp" in name or "wpe" in name))
    return name.removeprefix("transformer.") if drops else name


@given(KEYS, HEADS, PREFIXES, EXTRAS, ENTRIES, DTYPES, st.sampled_from(FORMS))
def test_a_language_model_is_that_of_transformers(keys, heads, prefixes, extras, entries, dtype, form):
    import torch

    config = TINY | keys
    state = state_of(TINY | {"n_inner": config["n_inner"] if isinstance(config.get("n_inner"), int) else None})
    if heads == "equal":
        state[HEAD] = state[EMBEDDING]
    for name in {"head": [EMBEDDING], "embedding": [HEAD], "none": [HEAD, EMBEDDING]}.get(heads, []):
        del state[name]
    state = {renamed(name, prefixes): value.to(getattr(torch, dtype)) for name, value in state.items()}
    for extra in extras:
        add(state, extra)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_config(path, config)
        write_weights(path, state, form, entries)
        event(assert_as_transformers(path, (*REASONS, "not floating-point")))


CLASSES = st.fixed_dictionaries(
    {},
    optional={
        "num_labels": st.sampled_from([1, 2, 3]),
        "id2label": st.sampled_from([
            None, {"0": "LABEL_0"}, {"0": "a", "1": "b"}, {"0": "a", "1": "b", "2": "c"}, {"1": "a", "2": "b"},
            {"0": "x", "1": "x"},
        ]),
        "label2id": st.just({"a": 0, "b": 1, "c": 2}),
        "problem_type": st.sampled_from([
            None, "regression", "single_label_classification", "multi_label_classification",
        ]),
        "pad_token_id": st.sampled_from([0, None]),
        "scale_attn_by_inverse_layer_idx": st.booleans(),
    },
)  # fmt: skip


@given(CLASSES, st.sampled_from([1, 2, 3]), st.booleans(), PREFIXES, st.sampled_from(FORMS))
def test_a_classifier_is_that_of_transformers(keys, rows, has_head, prefixes, form):
    import torch

    config = TINY | {"architectures": ["GPT2ForSequenceClassification"]} | keys
    state = {renamed(name, prefixes): value for name, value in state_of(TINY).items() if has_head or name != HEAD}
    state["score.weight"] = torch.randn(rows, 8, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        write_config(path, config)
        write_weights(path, state, form)
        event(assert_as_transformers(path))


def test_every_key_of_transformers_is_in_the_list():
    import transformers

    keys = {*transformers.GPT2Config().to_dict(), *transformers.GenerationConfig._get_default_generation_params()}
    assert keys - {entry.name for entry in CONFIG_KEYS.entries} == set()


# ---- the reported files, and their siblings


@pytest.fixture
def directory(tmp_path):
    """Write a directory, and return its path."""

    def write(state, form="safetensors", config=TINY, extra=None):
        path = tmp_path / "model"
        shutil.rmtree(path, ignore_errors=True)
        write_config(path, config)
        write_weights(path, state, form, extra)
        return path

    return write


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("absent", [HEAD, EMBEDDING])
def test_one_matrix_stands_for_both(directory, form, absent):
    state = state_of(TINY)
    del state[absent]
    assert assert_as_transformers(directory(state, form), ()) == "equal"


@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_differs_is_used_and_said(directory, form, caplog):
    with caplog.at_level(logging.WARNING):
        assert assert_as_transformers(directory(state_of(TINY), form), ()) == "equal"
    assert "lm_head.weight differs from wte.weight and is used as the head" in caplog.text
    assert '"tie_word_embeddings": false' in caplog.text


@pytest.mark.parametrize(("absent", "tie", "message"), [
    (HEAD, False, "tie_word_embeddings=false, but lm_head.weight is missing. Write true to use wte.weight for both"),
    (EMBEDDING, False, "tie_word_embeddings=false, but wte.weight is missing. Write true to use lm_head.weight"),
    (None, None, "tie_word_embeddings=null; write true or false (true: the head is wte.weight; false: it is lm_head"),
    (None, "false", "tie_word_embeddings='false'; write true or false"),
])  # fmt: skip
def test_ties_that_the_file_contradicts(directory, absent, tie, message):
    state = {name: value for name, value in state_of(TINY).items() if name != absent}
    with pytest.raises(UserError) as caught:
        load_source(directory(state, config=TINY | {"tie_word_embeddings": tie}))
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
@pytest.mark.parametrize("wrapper", ["", "module.", "_orig_mod.", "model.", "module.model."])
@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_table_within_a_pickle_is_read(directory, key, wrapper, form, caplog):
    import torch

    state = state_of(TINY)
    expected = by_transformers(directory(state))
    path = directory({}, form)
    nested = {key: {wrapper + name: value for name, value in state.items()}, "epoch": 3,
              "optimizer": {"state": {0: {"exp_avg": torch.zeros(5)}}, "param_groups": [{"lr": 0.1}]}}  # fmt: skip
    torch.save(nested, path / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(by_gpt2x(path), expected, atol=1e-3)
    assert f"the weights are its entry {key}; ignored: epoch, optimizer" in caplog.text


def pickled(content):
    def write(path):
        import torch

        torch.save(content(), path / "pytorch_model.bin")

    return write


def whole_model():
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=1, n_embd=4, vocab_size=5))


def float8():
    import torch

    return {name: value.to(torch.float8_e4m3fn) for name, value in state_of(TINY).items()}


def complex_values():
    import torch

    return {name: value.to(torch.complex64) for name, value in state_of(TINY).items()}


def sparse():
    return {name: value.to_sparse() for name, value in state_of(TINY).items()}


def optimizer():
    import torch

    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))]).state_dict()


def linears():
    """Return nanoGPT's names and layout."""
    state = state_of(TINY)
    return {"model": {f"_orig_mod.{name}": value.T.contiguous() if ".c_" in name and value.ndim == 2 else value
                      for name, value in state.items()}}  # fmt: skip


def unmerged():
    state = state_of(TINY)
    return {f"base_model.model.{name}".replace("c_attn.weight", "c_attn.base_layer.weight"): value
            for name, value in state.items()}  # fmt: skip


PICKLES = {
    "asks for transformers.models.gpt2.modeling_gpt2.GPT2LMHeadModel. It is a whole pickled model": whole_model,
    "holds tensors of a dtype such as float8": float8,
    "holds complex tensors": complex_values,
    "holds sparse tensors": sparse,
    "is the state of an optimizer, not weights": optimizer,
    "The matrices are those of torch.nn.Linear, such as nanoGPT's: transpose attn.c_attn.weight": linears,
    "belongs to an adapter that is not merged. Merge it with PEFT": unmerged,
    "no table of tensors, but epoch (int), args (dict). Save only the weights": lambda: {"epoch": 3, "args": {}},
    "several tables of weights: state_dict, model.": lambda: {"state_dict": state_of(TINY), "model": state_of(TINY)},
}


@pytest.mark.parametrize("message", PICKLES)
def test_other_pickles_are_named_as_what_they_are(tmp_path, message):
    write_config(tmp_path, TINY)
    pickled(PICKLES[message])(tmp_path)
    with pytest.raises(UserError) as caught:
        load_source(tmp_path)
    assert message in str(caught.value)


# ---- files that are no weights, and indices

OTHER_FILES = {
    "tf_model.h5": "tf_model.h5 is weights of TensorFlow. Convert it to model.safetensors with a version of transform",
    "tf_model-00001-of-00002.h5": "is weights of TensorFlow",
    "flax_model.msgpack": "flax_model.msgpack is weights of Flax. Convert it",
    "model.fp16.safetensors": "is weights of a variant, such as fp16. If it is the only one, rename it",
    "pytorch_model.fp16.bin": "is weights of a variant",
    "model.fp16.safetensors.index.json": "is weights of a variant",
    "model-00001-of-00002.safetensors": "is shards without their index. Copy model.safetensors.index.json as well.",
    "pytorch_model-00001-of-00002.bin": "is shards without their index. Copy pytorch_model.bin.index.json as well.",
    "consolidated.00.pth": "is weights in their author's format",
    "gpt2-q4_0.gguf": "is weights of llama.cpp",
    "model.ckpt-1000.index": "is a checkpoint of TensorFlow 1. Convert it",
    "model.ckpt-1000.data-00000-of-00001": "is a checkpoint of TensorFlow 1",
    "training_args.bin": "is the options of transformers' Trainer. Copy the weights",
    "optimizer.pt": "is a state of transformers' Trainer. Copy the weights",
    "model.onnx": "is a graph of ONNX",
    "openvino_model.bin": "is a graph of OpenVINO",
    "rust_model.ot": "is weights of rust-bert",
    "adapter_model.safetensors": "is a PEFT adapter. Give load=BASE 'adapters=[",
    "weights.safetensors": "is safetensors of a different name. If it is the only one, rename it to model.safetensors.",
    "pytorch_model.pt": "is a PyTorch file of a different name. If it is the only one, rename it to pytorch_model.bin.",
    "checkpoint-500/model.safetensors": "checkpoint-500 has weights; give load=",
    "__0_0.distcp": "is a checkpoint of FSDP",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_other_formats_are_named_as_what_they_are(tmp_path, name):
    write_config(tmp_path, TINY)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        load_source(tmp_path)
    assert OTHER_FILES[name] in str(caught.value)
    assert str(caught.value).endswith(".")


def test_the_newest_of_several_checkpoints_is_named(tmp_path):
    write_config(tmp_path, TINY)
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"checkpoint-1000 has weights; give load=.*/checkpoint-1000\.$"):
        load_source(tmp_path)


def indexed(path, weight_map, **index):
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map} | index))


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "link/x.safetensors"]
)
def test_shards_outside_of_the_directory(directory, tmp_path, file):
    path = directory(state_of(TINY))
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(path / "model.safetensors", outside / "x.safetensors")
    shutil.copy(outside / "x.safetensors", tmp_path / "x.safetensors")
    (path / "link").symlink_to(outside)
    indexed(path, dict.fromkeys(state_of(TINY), file))
    with pytest.raises(UserError, match=f"names '{file}', which is outside of the directory"):
        load_source(path)


def test_indices(directory):
    """No metadata, a tensor that the index does not name, one that no shard has, one in two shards."""
    from safetensors.torch import save_file

    state = state_of(TINY)
    path = directory(state)
    shutil.move(path / "model.safetensors", path / "all.safetensors")
    expected = state.keys() - {"transformer.ln_f.bias"}
    indexed(path, dict.fromkeys(expected, "all.safetensors"), metadata={})
    assert assert_as_transformers(path, ()) == "equal"
    indexed(path, dict.fromkeys(expected, "all.safetensors"))  # transformers raises KeyError: 'metadata'
    assert load_source(path).model.num_layers == 2
    indexed(path, dict.fromkeys([*state, "more"], "all.safetensors"), metadata={})
    with pytest.raises(UserError, match=r"names more, which no shard has\. Download it again"):
        load_source(path)
    save_file({"transformer.ln_f.bias": state["transformer.ln_f.bias"]}, path / "b.safetensors")
    indexed(path, dict.fromkeys(expected, "all.safetensors") | {"transformer.ln_f.bias": "b.safetensors"}, metadata={})
    with pytest.raises(UserError, match=r"transformer.ln_f.bias stand in all.safetensors and in b.safetensors"):
        load_source(path)
    indexed(path, {}, metadata={})
    with pytest.raises(UserError, match="has no weight_map of names to files"):
        load_source(path)


def test_weights_that_config_json_names(directory):
    path = directory(state_of(TINY))
    (path / "model.safetensors").rename(path / "mine.safetensors")
    write_config(path, TINY | {"transformers_weights": "mine.safetensors"})
    assert assert_as_transformers(path, ()) == "equal"
    for name, message in (("../x.safetensors", "outside of the directory"), ("x.safetensors", "which do not exist"),
                          ("mine.bin", "must name a file of safetensors")):  # fmt: skip
        write_config(path, TINY | {"transformers_weights": name})
        with pytest.raises(UserError, match=message):
            load_source(path)


def test_keys_that_are_unknown_are_said_once(directory, caplog):
    config = TINY | {"rotary": True, "alibi": 1, "auto_map": {"AutoModel": "modeling.py"}}
    with caplog.at_level(logging.WARNING):
        load_source(directory(state_of(TINY) | {}, config=config | {"tie_word_embeddings": False}))
    assert caplog.text.count("rotary, alibi") == 1
    assert "auto_map, which names code in the directory, which is never run" in caplog.text


def test_a_head_of_one_score(tmp_path):
    """predict.py gives transformers' logit; evaluate.py, which measures choices, rejects it."""
    import tokenizers
    import torch

    config = TINY | {"architectures": ["GPT2ForSequenceClassification"], "num_labels": 1, "vocab_size": 257}
    write_config(tmp_path, config)
    write_weights(tmp_path, state_of(config) | {"score.weight": torch.randn(1, 8)}, "safetensors")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", *alphabet])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    prompts, answers = ["a green", "door"], tmp_path / "answers.jsonl"
    options = [f"load={tmp_path}", f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    run("predict", *options, f"prompts={prompts}", f"output={answers}")
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    source = load_source(tmp_path)
    scores = [logits_of(source.model, source.weights(), np.array(backend.encode(text).ids))[0] for text in prompts]
    assert [row["prompt"] for row in rows] == prompts
    assert [row["score"] for row in rows] == pytest.approx(scores, abs=1e-4)
    sigmoids = [row["probabilities"]["LABEL_0"] for row in rows]
    assert sigmoids == pytest.approx(1 / (1 + np.exp(-np.array(scores))), abs=1e-4)
    assert all(row.keys() == {"prompt", "score", "probabilities"} for row in rows)
    message = refusal("evaluate", *options, "tracker=none", "dataset=labelled_text", f"dataset.path={answers}")
    assert "has a head of one score (num_labels=1)" in message
