"""A Hugging Face config.json to `ModelConfig`, and back (transformers' configuration_gpt2.py)."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from gpt2x.config import ModelConfig
from gpt2x.config.keys import leaves
from gpt2x.config.options import known_models
from gpt2x.convert.huggingface_keys import ACTIVATIONS, CONFIG_KEYS, NOTICED, RATES, SIZES, SUPPORTED
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.errors import UserError

log = logging.getLogger(__name__)

FIELDS = {"n_layer": "num_layers", "n_head": "num_heads", "n_embd": "hidden_size", "n_positions": "max_seq_len",
          "vocab_size": "vocab_size", "n_inner": "ffn_size"}  # fmt: skip
MAX_LABELS = 1 << 16  # each gets a name
CLASSIFIER = "GPT2ForSequenceClassification"
EXPORTED_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu": "gelu", "fast_gelu": "quick_gelu"}  # gpt2x's -> transformers'


def model_from_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """Return the model that a config.json describes. A missing key has transformers' default.

    Args:
        config: the content of config.json.
        path: its directory, for messages and the model's name.

    Raises:
        UserError: not a GPT-2, an impossible value, or an option that gpt2x does not have.
    """
    where = f"load={path}: config.json"
    architectures = _architectures(config, where)
    kind = config.get("model_type") or ("gpt2" if architectures and architectures[0].startswith("GPT2") else None)
    if kind != "gpt2":
        raise UserError(f"{where} has model_type={kind!r}, but gpt2x loads only 'gpt2'. Give a GPT-2 model.")
    for key, (values, meaning) in SUPPORTED.items():
        if config.get(key, values[0]) not in values:
            raise UserError(
                f"{where} has {key}={config[key]!r} ({meaning}), which gpt2x does not support. Use a different model."
            )
    sizes = _sizes(config, where)
    rates = _rates(config, where)
    activation = config.get("activation_function", "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise UserError(
            f"{where} has activation_function={activation!r}, but gpt2x has only {', '.join(ACTIVATIONS)}. "
            "Use a different model."
        )
    dropout = rates["resid_pdrop"]
    shape = (sizes["n_layer"], sizes["n_head"], sizes["n_embd"], sizes["n_positions"])
    is_classifier = any(name.removeprefix("TF").removeprefix("Flax") == CLASSIFIER for name in architectures)
    return ModelConfig(
        name=option_name(shape) or f"hf_{path.resolve().name}",
        num_layers=sizes["n_layer"],
        num_heads=sizes["n_head"],
        hidden_size=sizes["n_embd"],
        max_seq_len=sizes["n_positions"],
        vocab_size=sizes["vocab_size"],
        ffn_size=config.get("n_inner"),
        activation=ACTIVATIONS[activation],
        layer_norm_eps=rates["layer_norm_epsilon"],
        dropout=dropout,
        embedding_dropout=None if rates["embd_pdrop"] == dropout else rates["embd_pdrop"],
        attention_dropout=None if rates["attn_pdrop"] == dropout else rates["attn_pdrop"],
        initializer_range=rates["initializer_range"],
        tie_embeddings=_flag(config, "tie_word_embeddings", True, where),
        labels=labels_from_config(config, where) if is_classifier else None,
    )


def notices(config: dict[str, Any], path: Path) -> list[str]:
    """Return what a user should know of keys that are ignored: one sentence each."""
    where, keys = f"load={path}: config.json", {entry.name for entry in CONFIG_KEYS.entries}
    said = [f"{where} has {key}, which {meaning}." for key, meaning in NOTICED.items() if config.get(key)]
    unknown = [key for key in config if key not in keys]
    if unknown:
        said.append(f"{where} has keys that a GPT-2 does not have; they are ignored: {', '.join(unknown)}.")
    return said


def query_factors(config: dict[str, Any], path: Path) -> list[float]:
    """Return by layer the factor of attention scores, beside gpt2x's 1 / sqrt(head size) (GPT2Attention.__init__).

    Raises:
        UserError: a key has no value of a flag.
    """
    where = f"load={path}: config.json"
    sizes = _sizes(config, where)
    is_scaled = _flag(config, "scale_attn_weights", True, where)
    by_layer = _flag(config, "scale_attn_by_inverse_layer_idx", False, where)
    factor = 1.0 if is_scaled else math.sqrt(sizes["n_embd"] // sizes["n_head"])
    return [factor / (layer + 1 if by_layer else 1) for layer in range(sizes["n_layer"])]


def _architectures(config: dict[str, Any], where: str) -> list[str]:
    names = config.get("architectures") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where} has architectures={names!r}; it must be a list of names.")
    return names


def _flag(config: dict[str, Any], key: str, default: bool, where: str) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        hint = " (true: the head is wte.weight; false: it is lm_head.weight)" if key == "tie_word_embeddings" else ""
        raise UserError(f"{where} has {key}={_json(value)}; write true or false{hint}.")
    return value


def _json(value: object) -> str:
    return "null" if value is None else repr(value)


def _sizes(config: dict[str, Any], where: str) -> dict[str, int]:
    sizes = {}
    for key, (synonym, default) in SIZES.items():
        values = [config[name] for name in (key, synonym) if name in config]
        if len(values) == 2 and values[0] != values[1]:
            raise UserError(
                f"{where} has {key}={_json(values[0])} and {synonym}={_json(values[1])}, two names of one size. "
                "Remove the wrong one."
            )
        sizes[key] = values[0] if values else default
    sizes["n_inner"] = 1 if config.get("n_inner") is None else config["n_inner"]
    for key, value in sizes.items():
        most = leaves(ModelConfig)[FIELDS[key]].facts.at_most or 0
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            stated = repr(value)[:60]
            raise UserError(f"{where} has {key}={stated}; it must be a positive whole number of at most {most:,}.")
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(
            f"{where} has n_embd={sizes['n_embd']}, which is not divisible by n_head={sizes['n_head']}. "
            "Use a different model."
        )
    return sizes


def _rates(config: dict[str, Any], where: str) -> dict[str, float]:
    rates = {key: config.get(key, default) for key, default in RATES.items()}
    for key, value in rates.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
            raise UserError(f"{where} has {key}={value!r}; it must be a number of at least 0.")
        if key.endswith("_pdrop") and value >= 1:
            raise UserError(f"{where} has {key}={value!r}; a rate of dropout is below 1.")
    return {key: float(value) for key, value in rates.items()}


def labels_from_config(config: dict[str, Any], where: str) -> list[str]:
    """Return the classes that a config.json names, else transformers' names for `num_labels` (default 2).

    One class is a head of one score. As in transformers, `num_labels` decides where `id2label` has a different length.

    Args:
        config: the content of config.json.
        where: its name in messages.

    Raises:
        UserError: the head is no choice of one class, the ids do not count from 0, or a name occurs twice.
    """
    names, count = config.get("id2label"), config.get("num_labels")
    if names is not None and not (isinstance(names, dict) and names):
        raise UserError(f"{where} has id2label={names!r}; it must be an object of ids and names.")
    count = (len(names) if names else 2) if count is None else count
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_LABELS:
        raise UserError(
            f"{where} has num_labels={count!r}; it must be a positive whole number of at most {MAX_LABELS}."
        )
    _check_problem(config.get("problem_type"), count, len(names) if names else count, where)
    if names is None or len(names) != count:
        return [f"LABEL_{i}" for i in range(count)]
    if set(names) != {str(i) for i in range(count)}:
        raise UserError(f"{where} has id2label with the ids {', '.join(names)}; they must count from 0.")
    labels = [str(names[str(i)]) for i in range(count)]
    if len(set(labels)) < count:
        raise UserError(f"{where} has id2label={names!r}; give each class a name of its own.")
    return labels


def _check_problem(problem: object, count: int, num_names: int, where: str) -> None:
    """Raise UserError unless a head of `count` scores is a choice of one class, or one score."""
    stated = f"{where} has problem_type={problem!r} and {count} label{'s' * (count > 1)}"
    if problem not in (None, "single_label_classification", "regression", "multi_label_classification"):
        raise UserError(f"{stated}; transformers has regression, single_label_classification, "
                        "multi_label_classification. Correct it, or remove the key.")  # fmt: skip
    if problem == "multi_label_classification" or (problem == "regression" and count > 1):
        meaning = "each label is scored apart" if problem != "regression" else "each label is a number"
        raise UserError(
            f"{stated}: {meaning}, but gpt2x computes a choice of one class, or one score. Use transformers for it."
        )
    if problem == "single_label_classification" and 1 in (count, num_names):
        raise UserError(
            f'{stated}, which leaves no choice. Write "problem_type": "regression" if the head gives one score.'
        )


def option_name(shape: tuple[int, int, int, int]) -> str | None:
    """Return the option of conf/model with this (layers, heads, hidden size, positions), or None."""
    for name, model in known_models().items():
        if (model.num_layers, model.num_heads, model.hidden_size, model.max_seq_len) == shape:
            return name
    return None


def config_from_model(model: ModelConfig, ids: SpecialIds, *, dtype: str) -> dict[str, Any]:
    """Return the config.json with which transformers computes what gpt2x computes."""
    classifier: dict[str, Any] = {}
    if model.labels:
        id2label = {str(i): label for i, label in enumerate(model.labels)}
        label2id = {label: i for i, label in enumerate(model.labels)}
        classifier = {"id2label": id2label, "label2id": label2id}
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
        "activation_function": EXPORTED_ACTIVATIONS[model.activation],
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
        **ids.config,
        "torch_dtype": dtype,
    }
