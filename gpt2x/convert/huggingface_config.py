"""A Hugging Face config.json to `ModelConfig`, and back (transformers' configuration_gpt2.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt2x.config import ModelConfig
from gpt2x.config.options import known_models
from gpt2x.errors import UserError

CLASSIFIER = "GPT2ForSequenceClassification"

# transformers' activations (activations.py, ACT2FN) -> gpt2x's; names with the same value are one formula
ACTIVATIONS = {
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu": "gelu",
    "quick_gelu": "fast_gelu",
}
EXPORTED_ACTIVATIONS = {"gelu_new": "gelu_new", "gelu": "gelu", "fast_gelu": "quick_gelu"}  # gpt2x's -> transformers'

# key -> the second name that GPT2Config accepts, and its default
SIZES = {
    "n_layer": ("num_hidden_layers", 12),
    "n_head": ("num_attention_heads", 12),
    "n_embd": ("hidden_size", 768),
    "n_positions": ("max_position_embeddings", 1024),
    "vocab_size": ("vocab_size", 50257),
}
RATES = {
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
}
# key -> the only value that gpt2x computes, and what any other value means
UNSUPPORTED = {
    "scale_attn_by_inverse_layer_idx": (False, "attention scores are scaled by the layer's number"),
    "scale_attn_weights": (True, "attention scores are not scaled"),
    "add_cross_attention": (False, "the model attends to an encoder"),
}


def model_from_config(config: dict[str, Any], path: Path) -> ModelConfig:
    """Return the model that a config.json describes. A missing key has transformers' default.

    Args:
        config: the content of config.json.
        path: its directory, for messages and the model's name.

    Raises:
        UserError: not a GPT-2, an impossible size, or an activation or option that gpt2x does not have.
    """
    where = f"load={path}: config.json"
    architectures = config.get("architectures") or [""]
    kind = config.get("model_type") or ("gpt2" if str(architectures[0]).startswith("GPT2") else None)
    if kind != "gpt2":
        raise UserError(f"{where} has model_type={kind!r}, but gpt2x loads only 'gpt2'. Give a GPT-2 model.")
    for key, (value, meaning) in UNSUPPORTED.items():
        if config.get(key, value) != value:
            raise UserError(
                f"{where} has {key}={config[key]!r} ({meaning}), which gpt2x does not support. Use a different model."
            )
    sizes = _sizes(config, where)
    rates = _rates(config, where)
    activation = config.get("activation_function", "gelu_new")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{where} has activation_function={activation!r}, but gpt2x has only {', '.join(ACTIVATIONS)}. "
            "Use a different model."
        )
    dropout = rates["resid_pdrop"]
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
        layer_norm_eps=rates["layer_norm_epsilon"],
        dropout=dropout,
        embedding_dropout=None if rates["embd_pdrop"] == dropout else rates["embd_pdrop"],
        attention_dropout=None if rates["attn_pdrop"] == dropout else rates["attn_pdrop"],
        initializer_range=rates["initializer_range"],
        tie_embeddings=bool(config.get("tie_word_embeddings", True)),
        labels=labels_from_config(config, path) if CLASSIFIER in architectures else None,
    )


def _sizes(config: dict[str, Any], where: str) -> dict[str, int]:
    sizes = {key: config.get(key, config.get(synonym, default)) for key, (synonym, default) in SIZES.items()}
    sizes["n_inner"] = 1 if config.get("n_inner") is None else config["n_inner"]
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{where} has {key}={value!r}; it must be a positive whole number.")
    if sizes["n_embd"] % sizes["n_head"]:
        raise UserError(
            f"{where} has n_embd={sizes['n_embd']}, which is not divisible by n_head={sizes['n_head']}. "
            "Use a different model."
        )
    return sizes


def _rates(config: dict[str, Any], where: str) -> dict[str, float]:
    rates = {key: config.get(key, default) for key, default in RATES.items()}
    for key, value in rates.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise UserError(f"{where} has {key}={value!r}; it must be a number of at least 0.")
    return {key: float(value) for key, value in rates.items()}


def labels_from_config(config: dict[str, Any], path: Path) -> list[str]:
    """Return the classes that a config.json names, else transformers' default names for `num_labels` (default 2).

    Raises:
        UserError: the ids do not count from 0.
    """
    names = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(config.get("num_labels", 2))}
    if set(names) != {str(i) for i in range(len(names))}:
        raise UserError(
            f"load={path}: config.json has id2label with the ids {', '.join(names)}; they must count from 0."
        )
    return [str(names[str(i)]) for i in range(len(names))]


def option_name(shape: tuple[int, int, int, int]) -> str | None:
    """Return the option of conf/model with this (layers, heads, hidden size, positions), or None."""
    for name, model in known_models().items():
        if (model.num_layers, model.num_heads, model.hidden_size, model.max_seq_len) == shape:
            return name
    return None


def config_from_model(model: ModelConfig, *, eos_id: int | None, dtype: str) -> dict[str, Any]:
    """Return the config.json with which transformers computes what gpt2x computes."""
    classifier: dict[str, Any] = {}
    if model.labels:  # transformers locates a text's last token by pad_token_id
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
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "torch_dtype": dtype,
    }
