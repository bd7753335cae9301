"""Hugging Face GPT-2 directories: configuration, names and files, in and out (transformers' modeling_gpt2.py)."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2x.checkpoint.tensors import (
    LazyBox,
    LazyTensors,
    Spec,
    StoredTensor,
    open_safetensors,
    pieces,
    write_safetensors,
)
from gpt2x.checkpoint.write import numbered, split
from gpt2x.config import ModelConfig
from gpt2x.convert.names import check_weights
from gpt2x.convert.torch_pickle import open_torch
from gpt2x.data.template import FILE as TEMPLATE_FILE
from gpt2x.data.tokenizer import DEFAULT_EOS, declared_eos
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes
from gpt2x.runtime.files import new_directory

if TYPE_CHECKING:
    from gpt2x.convert.source import Source

log = logging.getLogger(__name__)

# in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
PREFIX = "transformer."
HEADS = ("lm_head.", "score.")  # beside the transformer
CLASSIFIER = "GPT2ForSequenceClassification"
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that old versions stored

# transformers' names (activations.py, ACT2FN) to ours; all of a line are one formula
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "quick_gelu": "fast_gelu",
}
OUR_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu": "gelu", "fast_gelu": "quick_gelu"}

# GPT2Config's defaults and the second names it accepts
SIZES = {
    "n_layer": ("num_hidden_layers", 12),
    "n_head": ("num_attention_heads", 12),
    "n_embd": ("hidden_size", 768),
    "n_positions": ("max_position_embeddings", 1024),
    "vocab_size": ("vocab_size", 50257),
}
UNSUPPORTED = {
    "scale_attn_by_inverse_layer_idx": (False, "attention scores are scaled by the layer's number"),
    "scale_attn_weights": (True, "attention scores are not scaled"),
    "add_cross_attention": (False, "the model attends to an encoder"),
}


class HuggingFaceSource:
    """A Hugging Face GPT-2 directory whose names and shapes fit its config.json."""

    kind = "huggingface"

    def __init__(self, path: Path, model: ModelConfig, stored: dict[str, StoredTensor]):
        self.path = path
        self.model = model
        self.tokenizer_dir = path if holds_tokenizer(path) else None
        self._stored = stored

    def weights(self) -> LazyTensors:
        """Logical tensors in their stored dtype (bfloat16: as float32)."""
        return lazy_tensors(self._stored)

    def verify(self) -> None:
        """Do nothing: a Hugging Face directory states no hashes, and the sizes have been checked."""


def open_huggingface(path: Path) -> HuggingFaceSource:
    """Opens the directory and checks everything; reads no values but those of a tied head.

    Raises:
        UserError: Naming path, fault and fix.
    """
    model = model_from_config(read_json(path / "config.json"), path)
    stored = _logical_names(_open_weights(path), path)
    if model.labels:
        stored.pop("lm_head.weight", None)
    if model.tie_embeddings and "lm_head.weight" in stored:
        both = lazy_tensors({name: stored[name] for name in ("lm_head.weight", "wte.weight") if name in stored})
        del stored["lm_head.weight"]
        if "wte.weight" in both and not _same(both.box("lm_head.weight"), both.box("wte.weight")):
            log.warning(
                "load=%s: lm_head.weight differs from wte.weight, and is ignored because config.json ties them, as in "
                'transformers; if the head is meant, put "tie_word_embeddings": false there',
                path,
            )
    check_weights(lazy_tensors(stored), model, origin=f"load={path}")
    return HuggingFaceSource(path, model, {name: stored[name] for name in tensor_shapes(model)})


def model_from_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """The model that a config.json describes; what it leaves out is transformers' default.

    Raises:
        UserError: Another architecture, an impossible size, an activation or an option gpt2x has not.
    """
    where = f"load={path}: config.json"
    architectures = config.get("architectures") or [""]
    kind = config.get("model_type") or ("gpt2" if str(architectures[0]).startswith("GPT2") else None)
    if kind != "gpt2":
        raise UserError(f"{where} has model_type {kind!r}: gpt2x loads 'gpt2'")
    for key, (value, meaning) in UNSUPPORTED.items():
        if config.get(key, value) != value:
            raise UserError(f"{where} has {key}={config[key]!r} ({meaning}), which gpt2x has not: use another model")
    sizes = {key: config.get(key, config.get(other, default)) for key, (other, default) in SIZES.items()}
    sizes["n_inner"] = 1 if config.get("n_inner") is None else config["n_inner"]
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where} has {key}={value!r}: it must be a positive whole number")
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(f"{where} has n_embd={sizes['n_embd']}, which n_head={sizes['n_head']} does not divide")
    numbers: dict[str, float] = {}
    for key, default in (
        ("resid_pdrop", 0.1),
        ("embd_pdrop", 0.1),
        ("attn_pdrop", 0.1),
        ("layer_norm_epsilon", 1e-5),
        ("initializer_range", 0.02),
    ):
        value = config.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise UserError(f"{where} has {key}={value!r}: it must be a number of at least 0")
        numbers[key] = float(value)
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(f"{where} has activation_function {activation!r}: gpt2x has {', '.join(ACTIVATIONS)}")
    dropout = numbers["resid_pdrop"]
    shape = (sizes["n_layer"], sizes["n_head"], sizes["n_embd"], sizes["n_positions"])
    return ModelConfig(
        name=option_name(shape) or f"hf_{path.resolve().name}",
        num_layers=sizes["n_layer"],
        num_heads=sizes["n_head"],
        hidden_size=sizes["n_embd"],
        max_seq_len=sizes["n_positions"],
        vocab_size=sizes["vocab_size"],
        ffn_size=config.get("n_inner"),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=numbers["layer_norm_epsilon"],
        dropout=dropout,
        embedding_dropout=None if numbers["embd_pdrop"] == dropout else numbers["embd_pdrop"],
        attention_dropout=None if numbers["attn_pdrop"] == dropout else numbers["attn_pdrop"],
        initializer_range=numbers["initializer_range"],
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        labels=labels_from_config(config, path) if CLASSIFIER in architectures else None,
    )


def labels_from_config(config: dict[str, Any], path: Path) -> list[str]:
    """The classes that a config.json names, or transformers' default names for their number, two unless stated.

    Raises:
        UserError: Ids that do not count from 0.
    """
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if set(names) != {str(i) for i in range(len(names))}:
        raise UserError(
            f"load={path}: config.json has id2label with the ids {', '.join(names)}: they must count from 0"
        )
    return [str(names[str(i)]) for i in range(len(names))]


def option_name(shape: tuple[int, int, int, int]) -> str | None:
    """The option of conf/model with these layers, heads, hidden size and positions."""
    from gpt2x.config.options import known_models  # brings hydra

    for name, model in known_models().items():
        if (model.num_layers, model.num_heads, model.hidden_size, model.max_seq_len) == shape:
            return name
    return None


def config_from_model(model: ModelConfig, *, eos_id: int | None, dtype: str) -> dict[str, Any]:
    """The config.json with which transformers computes what gpt2x computes."""
    classifier: dict[str, Any] = {}
    if model.labels:  # transformers finds a text's last token by pad_token_id
        id2label = {str(i): label for i, label in enumerate(model.labels)}
        label2id = {label: i for i, label in enumerate(model.labels)}
        classifier = {"id2label": id2label, "label2id": label2id, "pad_token_id": eos_id}
    return classifier | {
        "architectures": [CLASSIFIER if model.labels else "GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": model.num_layers,
        "n_head": model.num_heads,
        "n_embd": model.hidden_size,
        "n_positions": model.max_seq_len,
        "n_ctx": model.max_seq_len,
        "n_inner": model.ffn_size,
        "vocab_size": model.vocab_size,
        "activation_function": OUR_ACTIVATIONS[model.activation],
        "layer_norm_epsilon": model.layer_norm_eps,
        "resid_pdrop": model.dropout,
        "embd_pdrop": model.dropout if model.embedding_dropout is None else model.embedding_dropout,
        "attn_pdrop": model.dropout if model.attention_dropout is None else model.attention_dropout,
        "initializer_range": model.initializer_range,
        "tie_word_embeddings": model.tie_embeddings,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
        "use_cache": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }


def export_huggingface(source: Source, output: Path) -> None:
    """Writes a directory that transformers loads: config, generation config, safetensors, tokenizer files.

    Args:
        source: Its values are written in the dtype they have.
        output: A directory that does not exist or is empty.

    Raises:
        UserError: `output` holds files, or cannot be written.
    """
    require_empty(output)
    weights = source.weights()
    eos_id = None if source.tokenizer_dir is None else find_eos_id(source.tokenizer_dir)
    config = config_from_model(source.model, eos_id=eos_id, dtype=weights.specs["wte.weight"].dtype.name)
    generation = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    with new_directory(output) as temporary:
        _write_weights(weights, temporary)
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if source.tokenizer_dir is not None:
            copy_tokenizer(source.tokenizer_dir, temporary)


def _write_weights(weights: LazyTensors, folder: Path) -> None:
    """One file, or several and their index, as transformers' save_pretrained."""
    boxes = {name if name.startswith(HEADS) else PREFIX + name: weights.box(name) for name in weights}
    files = split(boxes)
    if len(files) == 1:
        write_safetensors(folder / "model.safetensors", boxes, {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        file = f"model-{numbered(number, len(files))}.safetensors"
        write_safetensors(folder / file, {name: boxes[name] for name in names}, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    total = sum(math.prod(box.shape) * box.dtype.itemsize for box in boxes.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def require_empty(output: Path) -> None:
    """Nothing is overwritten.

    Raises:
        UserError: `output` holds files, or is one.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output {output} exists and is not an empty directory: nothing was written, give a new one")


def holds_tokenizer(directory: Path) -> bool:
    """Whether tokenizer.json, or vocab.json with merges.txt, is there."""
    return (directory / "tokenizer.json").is_file() or all(
        (directory / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies those of the five files of a tokenizer that are there, and the template of prompts.

    An end-of-text token that only the model's config.json names is written into tokenizer_config.json, since
    config.json is not copied.
    """
    for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    token = declared_eos(source, _tokens(source).get)
    if token is not None and declared_eos(target, lambda _: None) is None:
        file = target / "tokenizer_config.json"
        content = (read_json(file) if file.is_file() else {"tokenizer_class": "GPT2Tokenizer"}) | {"eos_token": token}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_eos_id(directory: Path) -> int | None:
    """The id of the tokenizer's end-of-text token, as `Tokenizer.load` finds it; None where the vocabulary lacks it.

    Raises:
        UserError: One of the files is not JSON.
    """
    tokens = _tokens(directory)
    eos = declared_eos(directory, tokens.get) or DEFAULT_EOS
    return next((i for i, token in tokens.items() if token == eos), None)


def _tokens(directory: Path) -> dict[int, str]:
    """Id to token of any kind of tokenizer."""
    if (directory / "tokenizer.json").is_file():
        tokenizer = read_json(directory / "tokenizer.json")
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        # a list of (token, score) in Unigram tokenizers
        tokens = (
            {i: token for token, i in vocabulary.items()}
            if isinstance(vocabulary, dict)
            else {i: token for i, (token, _) in enumerate(vocabulary)}
        )
        return tokens | {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens") or []}
    return {i: token for token, i in read_json(directory / "vocab.json").items()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        UserError: It cannot be read, or is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a JSON object: copy or download it again")
    return content


def lazy_tensors(stored: Mapping[str, StoredTensor]) -> LazyTensors:
    """Stored tensors, each read when it is asked for."""
    specs = {name: Spec(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return LazyTensors(specs, lambda name, start, shape: stored[name].read(start, shape))


def _same(one: LazyBox, other: LazyBox) -> bool:
    """Whether two tensors have the same values; holds a piece of each at a time."""
    return one.shape == other.shape and all(
        np.array_equal(a, b) for a, b in zip(pieces(one), pieces(other), strict=True)
    )


def _open_weights(path: Path) -> dict[str, StoredTensor]:
    """The tensors of whichever weight files are there, under the names they have there."""
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            break
    else:
        raise UserError(f"load={path} has a config.json but no weights: none of {', '.join(WEIGHT_FILES)} is there")
    open_file = open_safetensors if "safetensors" in name else open_torch
    if not name.endswith(".index.json"):
        return open_file(path / name)
    weight_map = read_json(path / name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path / name} has no weight_map of names to files: copy or download it again")
    shards = sorted(set(weight_map.values()))
    absent = [file for file in shards if Path(file).name != file or not (path / file).is_file()]
    if absent:
        raise UserError(f"load={path}: {name} names {', '.join(absent)}, not found there: copy or download all shards")
    return {key: tensor for file in shards for key, tensor in open_file(path / file).items()}


def _logical_names(stored: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Without the prefix `transformer.` and without mask buffers."""
    logical: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        short = name.removeprefix(PREFIX)
        if MASK_BUFFER.fullmatch(short):
            continue
        if short in logical:
            raise UserError(f"load={path}: {short} is there twice, with and without {PREFIX!r}: remove one")
        logical[short] = tensor
    return logical
