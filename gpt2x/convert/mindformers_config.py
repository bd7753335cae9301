"""MindFormers' YAML files to `ModelConfig`, and back (mindformers/models/gpt2/gpt2_config.py).

The tensors say most of a model's shape. The number of heads and the activation are only in the YAML file; without one,
they are those of the option of `conf/model` with the same layers and hidden size, and a notice says so.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from pathlib import Path
from typing import Any

from gpt2x.compatibility import Entry, Format, Use, entries
from gpt2x.config import ModelConfig
from gpt2x.config.options import known_models
from gpt2x.convert.directories import read_json
from gpt2x.convert.mindformers_names import OUTER, Parameters
from gpt2x.errors import UserError
from gpt2x.runtime.yaml_text import read_yaml

log = logging.getLogger(__name__)

WORDS, POSITIONS = (name for name, logical in OUTER.items() if logical in ("wte.weight", "wpe.weight"))
ACTIVATIONS = {"gelu": "gelu_new", "fast_gelu": "fast_gelu"}  # MindFormers' -> gpt2x's; its gelu is the tanh form
EXPORTED_ACTIVATIONS = {"gelu_new": "gelu", "fast_gelu": "fast_gelu"}
LAYER_NORM_EPS = 1e-5  # MindFormers has no key for it
DEFAULT_HEADS, DEFAULT_ACTIVATION, DEFAULT_DROPOUT = 12, "gelu", 0.1  # of GPT2Config
SIZES = {
    "num_layers": "blocks",
    "hidden_size": "columns of the word embedding",
    "embedding_size": "columns of the word embedding",
    "vocab_size": "rows of the word embedding",
    "max_position_embeddings": "rows of the position embedding",
    "seq_length": "rows of the position embedding",
    "expand_ratio": "width of output.mapping, divided by the hidden size",
    "num_labels": "rows of score.weight",
}
# our field -> MindFormers' key, and its name in release 0.3
RATES = {
    "embedding_dropout": ("embedding_dropout_prob", "dropout_prob"),
    "dropout": ("hidden_dropout_rate", "hidden_dropout_prob"),
    "attention_dropout": ("attention_dropout_rate", "attention_probs_dropout_prob"),
}

MODEL_CONFIG = Format(
    "MindFormers: model.model_config of its YAML file",
    "The YAML file beside a .ckpt file (of the same name, or the only one there); MindFormers 1.3 defines it.",
    (
        Entry("num_heads", Use.READ, f"default {DEFAULT_HEADS}; has to divide the hidden size"),
        Entry("hidden_act", Use.READ, "`gelu` (our `gelu_new`) or `fast_gelu`; others are rejected"),
        *(Entry(key, Use.READ, f"compared with the tensors: {what}") for key, what in SIZES.items()),
        *(Entry(key, Use.READ, "rate of dropout in training") for keys in RATES.values() for key in keys),
        Entry("pet_config", Use.READ, "`lora_alpha`, `lora_rank`, `lora_dropout`; `pet_type` has to be `lora`"),
        Entry("post_layernorm_residual", Use.REJECTED, "if true: layer norms stand after the sums"),
        Entry("moe_config", Use.REJECTED, "if expert_num is more than 1: experts"),
        *entries(Use.IGNORED, ("type", "model_type", "arch", "offset", "checkpoint_name_or_path"), "class and file"),
        *entries(
            Use.IGNORED,
            ("param_init_type", "layernorm_compute_type", "softmax_compute_type", "layernorm_dtype", "softmax_dtype",
             "compute_dtype"),
            "`hardware.precision` decides; values have the dtype of the file",
        ),
        *entries(
            Use.IGNORED,
            ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id", "eos_token"),
            "the tokenizer decides",
        ),
        *entries(
            Use.IGNORED,
            ("repetition_penalty", "max_decode_length", "max_length", "max_new_tokens", "top_k", "top_p", "do_sample",
             "temperature"),
            "keys of `generation` decide",
        ),
        *entries(
            Use.IGNORED,
            ("batch_size", "use_past", "use_flash_attention", "use_prompt_flash_attention", "is_dynamic", "block_size",
             "num_blocks", "parallel_config", "initializer_range", "check_for_nan_in_loss_and_grad",
             "calculate_per_token_loss"),
            "how it is computed, not what",
        ),
    ),
    "ignored, with a notice that names it.",
)  # fmt: skip


def read_config(file: Path) -> dict[str, Any] | None:
    """Return the model's configuration in a MindFormers YAML file or its `config.json`, or None if it has none.

    Raises:
        UserError: the file cannot be read.
    """
    if file.suffix == ".json":
        return read_json(file)
    loaded = read_yaml(file, "Correct it, or move it away.")
    if not isinstance(loaded, dict):
        return None
    model = loaded.get("model")
    config = model.get("model_config") if isinstance(model, dict) else None
    return config if isinstance(config, dict) else None


def model_of(
    parameters: Parameters, config: dict[str, Any] | None, origin: str, config_file: Path | None
) -> ModelConfig:
    """Return the model to which parameters belong.

    Args:
        parameters: their shapes are read.
        config: the model's configuration in the YAML file; None if there is no file.
        origin: where the parameters come from, for messages.
        config_file: the YAML file, or None.

    Raises:
        UserError: tensors are missing from which the shape follows, the YAML file contradicts the tensors or has what
            gpt2x lacks, or there is none and the number of heads is unknown.
    """
    shape = shape_of(parameters, origin)
    if config is None:
        heads, activation = _assumed(shape, origin)
    else:
        heads, activation = _stated(config, shape, f"{origin}: {config_file}")
    rates = {field: _rate(config or {}, keys, f"{origin}: {config_file}") for field, keys in RATES.items()}
    hidden, ffn = shape["hidden_size"], shape["ffn_size"]
    dropout = rates["dropout"]
    option = _option_of(shape)
    is_option = option and (option.num_heads, option.max_seq_len) == (heads, shape["max_position_embeddings"])
    return ModelConfig(
        name=option.name if option and is_option else "mindformers",
        num_layers=shape["num_layers"],
        num_heads=heads,
        hidden_size=hidden,
        max_seq_len=shape["max_position_embeddings"],
        vocab_size=shape["vocab_size"],
        ffn_size=None if ffn == 4 * hidden else ffn,
        activation=activation,
        layer_norm_eps=LAYER_NORM_EPS,
        dropout=dropout,
        embedding_dropout=None if rates["embedding_dropout"] == dropout else rates["embedding_dropout"],
        attention_dropout=None if rates["attention_dropout"] == dropout else rates["attention_dropout"],
        labels=default_labels(shape),
    )


def default_labels(shape: dict[str, int]) -> list[str] | None:
    """Return transformers' names for a classifier's classes, which MindFormers does not name, or None."""
    return [f"LABEL_{i}" for i in range(shape["num_labels"])] if "num_labels" in shape else None


def shape_of(parameters: Parameters, origin: str) -> dict[str, int]:
    """Return the sizes that the tensors state, by MindFormers' keys, and `ffn_size`.

    Raises:
        UserError: a tensor from which a size follows is missing or no matrix.
    """
    mapping = "backbone.blocks.0.output.mapping.weight"
    matrices = [WORDS, POSITIONS, mapping, *(name for name in ("score.weight",) if name in parameters.weights)]
    absent = [name for name in matrices if name not in parameters.weights]
    if parameters.num_layers > len(parameters.weights):
        absent.append(f"most of {parameters.num_layers} layers")
    if absent:
        raise UserError(f"{origin}: the parameters are incomplete: {', '.join(absent)} missing. Give the whole model.")
    shapes = {name: parameters.weights[name].shape for name in matrices}
    for name, sizes in shapes.items():
        if len(sizes) != 2 or 0 in sizes:
            raise UserError(f"{origin}: {name} has the shape {sizes}, but it has to be a matrix. Give a GPT-2.")
    shape = {
        "num_layers": parameters.num_layers,
        "vocab_size": shapes[WORDS][0],
        "hidden_size": shapes[WORDS][1],
        "max_position_embeddings": shapes[POSITIONS][0],
        "ffn_size": shapes[mapping][1],
    }
    return shape | ({"num_labels": shapes["score.weight"][0]} if "score.weight" in shapes else {})


def _assumed(shape: dict[str, int], origin: str) -> tuple[int, str]:
    """Return heads and activation of the option with the same layers and hidden size; a notice says so."""
    if model := _option_of(shape):
        log.warning(
            "%s: no YAML file with model.model_config is beside it, so num_heads=%d and activation=%s of model=%s are "
            "assumed. To state them, write a file of the same name that ends with .yaml: %s",
            origin, model.num_heads, model.activation, model.name, _example(model.num_heads),
        )  # fmt: skip
        return model.num_heads, model.activation
    raise UserError(
        f"{origin}: the tensors ({shape['num_layers']} layers of {shape['hidden_size']}) do not say how many heads the "
        "model has, and no YAML file with model.model_config is beside it. Copy MindFormers' there, or write one of "
        f"the same name that ends with .yaml: {_example('NUMBER')}"
    )


@cache
def _options() -> dict[tuple[int, int], ModelConfig]:
    """Return the options of conf/model by layers and hidden size."""
    return {(model.num_layers, model.hidden_size): model for model in known_models().values()}


def _option_of(shape: dict[str, int]) -> ModelConfig | None:
    """Return the option of conf/model with these layers and this hidden size."""
    return _options().get((shape["num_layers"], shape["hidden_size"]))


def _example(heads: object) -> str:
    return f"`model: {{model_config: {{num_heads: {heads}, hidden_act: gelu}}}}`."


def _stated(config: dict[str, Any], shape: dict[str, int], where: str) -> tuple[int, str]:
    """Return heads and activation of a YAML file that does not contradict the tensors."""
    experts = config.get("moe_config")
    if isinstance(experts, dict) and experts.get("expert_num", 1) != 1:
        raise UserError(f"{where} has moe_config.expert_num={experts['expert_num']!r}, but gpt2x has no experts. "
                        "Use a model without them.")  # fmt: skip
    if config.get("post_layernorm_residual") not in (None, False):
        raise UserError(f"{where} has post_layernorm_residual={config['post_layernorm_residual']!r}, which gpt2x does "
                        "not support. Use a model whose layer norms stand before the sums.")  # fmt: skip
    _compare_sizes(config, shape, where)
    heads = config.get("num_heads", DEFAULT_HEADS)
    if not isinstance(heads, int) or isinstance(heads, bool) or heads < 1 or shape["hidden_size"] % heads:
        raise UserError(
            f"{where} has num_heads={heads!r}, which does not divide {shape['hidden_size']} (hidden_size). Correct it."
        )
    name = config.get("hidden_act", DEFAULT_ACTIVATION)
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise UserError(f"{where} has hidden_act={name!r}, but gpt2x has only {', '.join(ACTIVATIONS)}. "
                        "Use a different model.")  # fmt: skip
    activation = ACTIVATIONS[name]
    usual = _option_of(shape)
    if usual is not None and usual.activation != activation:
        log.warning(
            "%s has hidden_act=%s, which is used. The published weights of this size were trained with %s; if these "
            "are they, correct hidden_act or use them from Hugging Face.", where, name, usual.activation,
        )  # fmt: skip
    names = {entry.name for entry in MODEL_CONFIG.entries}
    if others := [key for key in config if key not in names]:
        log.warning("%s has keys that gpt2x does not know and ignores: %s.", where, ", ".join(map(str, others[:5])))
    return heads, activation


def _compare_sizes(config: dict[str, Any], shape: dict[str, int], where: str) -> None:
    """Check that stated sizes are those of the tensors."""
    actual = shape | {"embedding_size": shape["hidden_size"]}
    if config.get("max_position_embeddings") is None:
        actual["seq_length"] = shape["max_position_embeddings"]
    if shape["ffn_size"] % shape["hidden_size"] == 0:
        actual["expand_ratio"] = shape["ffn_size"] // shape["hidden_size"]
    for key, what in SIZES.items():
        if config.get(key) is not None and key in actual and config[key] != actual[key]:
            raise UserError(
                f"{where} has {key}={config[key]!r}, but the tensors have {actual[key]} ({what}), so they belong to "
                "different models. Correct the file, or give the weights to which it belongs."
            )


def _rate(config: dict[str, Any], keys: tuple[str, str], where: str) -> float:
    key = next((key for key in keys if key in config), None)
    rate = DEFAULT_DROPOUT if key is None else config[key]
    if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 <= rate < 1:
        raise UserError(f"{where} has {key}={rate!r}; it has to be a number from 0 to below 1.")
    return float(rate)


def lora_scale(config: dict[str, Any] | None, rank: int, origin: str) -> float:
    """Return alpha / rank of the LoRA that a YAML file describes.

    Args:
        config: the model's configuration in the YAML file, or None.
        rank: of the factors.
        origin: where the factors come from, for messages.

    Raises:
        UserError: the file does not state alpha, or states a different rank or kind.
    """
    pet = (config or {}).get("pet_config")
    pet = pet if isinstance(pet, dict) else {}
    if pet.get("pet_type", "lora") != "lora":
        raise UserError(f"{origin}: pet_config.pet_type={pet['pet_type']!r}, but gpt2x reads only 'lora'. Use LoRA.")
    alpha = pet.get("lora_alpha")
    if alpha is None:
        raise UserError(
            f"{origin} holds LoRA's factors of rank {rank}, but not lora_alpha, without which they mean nothing. Copy "
            "the YAML file of the training beside it, or write one of the same name that ends with .yaml: `model: "
            f"{{model_config: {{num_heads: NUMBER, hidden_act: gelu, pet_config: {{pet_type: lora, lora_rank: {rank}, "
            "lora_alpha: NUMBER}}}`."
        )
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not -math.inf < alpha < math.inf:
        raise UserError(f"{origin}: pet_config.lora_alpha={alpha!r} in the YAML file; it has to be a number.")
    if pet.get("lora_rank", rank) != rank:
        raise UserError(f"{origin}: pet_config.lora_rank={pet['lora_rank']!r} in the YAML file, but the factors have "
                        f"rank {rank}, so they do not belong together. Correct the file.")  # fmt: skip
    return alpha / rank


def lora_dropout(config: dict[str, Any] | None) -> float:
    """Return the dropout of the LoRA that a YAML file describes; 0 if it does not say."""
    pet = (config or {}).get("pet_config")
    rate = pet.get("lora_dropout") if isinstance(pet, dict) else None
    return float(rate) if isinstance(rate, int | float) else 0.0


def config_of_model(model: ModelConfig, special_ids: dict[str, int], origin: str) -> dict[str, Any]:
    """Return the content of a YAML file with which MindFormers computes what gpt2x computes.

    Args:
        model: the model.
        special_ids: role -> id of special tokens, such as `eos_token`.
        origin: the model's directory, for messages.

    Raises:
        UserError: MindFormers cannot compute the model.
    """
    ffn = model.ffn_size or 4 * model.hidden_size
    faults = {
        f"model.tie_embeddings={model.tie_embeddings}": model.labels is None and not model.tie_embeddings,
        f"model.layer_norm_eps={model.layer_norm_eps}": abs(model.layer_norm_eps - LAYER_NORM_EPS) > 1e-12,
        f"model.ffn_size={ffn}, no multiple of {model.hidden_size}": ffn % model.hidden_size != 0,
        f"model.activation={model.activation}": model.activation not in (*EXPORTED_ACTIVATIONS, "gelu"),
    }
    if lacking := [fault for fault, is_lacking in faults.items() if is_lacking]:
        raise UserError(f"{origin} cannot be computed by MindFormers, which lacks {'; '.join(lacking)}. Use --to hf.")
    if model.activation == "gelu":
        log.warning(
            "%s has activation=gelu. MindFormers has only its tanh form, which differs by up to 0.0005.", origin
        )
    classes = {} if model.labels is None else {"num_labels": len(model.labels)}
    ids = {
        f"{role}_id": i
        for role, i in special_ids.items()
        if f"{role}_id" in {entry.name for entry in MODEL_CONFIG.entries}
    }
    config = {
        "type": "GPT2Config",
        "seq_length": model.max_seq_len,
        "max_position_embeddings": model.max_seq_len,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "expand_ratio": ffn // model.hidden_size,
        "hidden_act": EXPORTED_ACTIVATIONS.get(model.activation, "gelu"),
        "embedding_dropout_prob": model.dropout if model.embedding_dropout is None else model.embedding_dropout,
        "hidden_dropout_rate": model.dropout,
        "attention_dropout_rate": model.dropout if model.attention_dropout is None else model.attention_dropout,
    }
    arch = "GPT2LMHeadModel" if model.labels is None else "GPT2ForSequenceClassification"
    return {"model": {"model_config": config | ids | classes, "arch": {"type": arch}}}
