"""Hugging Face directories of tiny GPT-2s, what transformers computes with them, and the same by numpy for gpt2x."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.config import ModelConfig
from gpt2x.convert import load_source
from gpt2x.model.stats import ffn_size

TINY = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_head": 2, "n_embd": 8,
        "n_positions": 12, "vocab_size": 19, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
IDS = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])  # texts end with a token that is not the padding


def erf(x: np.ndarray) -> np.ndarray:
    """Return the error function, of each value."""
    return np.vectorize(math.erf)(x)


ACTIVATION = {
    "gelu_new": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "fast_gelu": lambda x: x / (1 + np.exp(-1.702 * x)),
}


def logits_of(model: ModelConfig, weights: Any, ids: np.ndarray) -> np.ndarray:
    """ids (T,) -> logits (T, V) of a language model or (K,) of a classifier, in float64."""
    values = {name: np.asarray(weights[name], np.float64) for name in weights}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + model.layer_norm_eps)
        return centred / scale * values[f"{name}.weight"] + values[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ values[f"{name}.weight"] + values[f"{name}.bias"]

    num_tokens, heads = len(ids), model.num_heads
    assert values["h.0.mlp.c_fc.bias"].shape == (ffn_size(model),)
    x = values["wte.weight"][ids] + values["wpe.weight"][:num_tokens]
    for layer in range(model.num_layers):
        qkv = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn")
        q, k, v = qkv.reshape(num_tokens, 3, heads, -1).transpose(1, 2, 0, 3)
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        scores = np.where(np.tri(num_tokens, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True)) @ v
        x = x + linear(attended.transpose(1, 0, 2).reshape(num_tokens, -1), f"h.{layer}.attn.c_proj")
        inner = ACTIVATION[model.activation](linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc"))
        x = x + linear(inner, f"h.{layer}.mlp.c_proj")
    x = norm(x, "ln_f")
    if model.is_classifier:
        return x[-1] @ values["score.weight"].T
    return x @ values["wte.weight" if model.tie_embeddings else "lm_head.weight"].T


def by_gpt2x(path: Path) -> np.ndarray:
    """Return the logits of gpt2x's weights.

    Raises:
        UserError: gpt2x rejects the directory.
    """
    source = load_source(path)
    return logits_of(source.model, source.weights(), IDS)


def by_transformers(path: Path) -> np.ndarray | None:
    """Return transformers' logits in float32, or None if it fails or draws a missing weight at random."""
    import torch
    import transformers

    architectures = json.loads((path / "config.json").read_text()).get("architectures") or [""]
    is_classifier = "GPT2ForSequenceClassification" in architectures
    auto = transformers.AutoModelForSequenceClassification if is_classifier else transformers.AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        with torch.no_grad():
            return model.eval()(torch.tensor(IDS[None])).logits[0].double().numpy()
    except Exception:  # whatever transformers raises
        return None


def state_of(config: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """Return random tensors of torch for a config, by transformers' names, with a head that is not the embedding."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    d, inner = config["n_embd"], config.get("n_inner") or 4 * config["n_embd"]
    shapes = {"wte.weight": (config["vocab_size"], d), "wpe.weight": (config["n_positions"], d)}
    for layer in range(config["n_layer"]):
        linears = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
        for name, shape in linears.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{name}.weight": (d,), f"h.{layer}.{name}.bias": (d,)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    named = {f"transformer.{name}": shape for name, shape in shapes.items()}
    named |= {"lm_head.weight": shapes["wte.weight"]}
    return {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in named.items()}


def write_config(path: Path, config: dict[str, Any]) -> None:
    """Write config.json, and make its directory."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))


def write_weights(path: Path, state: dict[str, Any], form: str, extra: dict[str, Any] | None = None) -> None:
    """Write tensors of torch in one of FORMS, with entries that are no tensors if the form is a pickle."""
    import torch
    from safetensors.torch import save_file

    kind, *where = form.split(" ")
    ending = "safetensors" if kind == "safetensors" else "bin"

    def save(part: dict[str, Any], file: Path) -> None:
        file.parent.mkdir(exist_ok=True)
        if kind == "safetensors":
            save_file({name: value.clone().contiguous() for name, value in part.items()}, file, {"format": "pt"})
        else:
            torch.save(part | (extra or {}), file, _use_new_zipfile_serialization=kind == "zip")

    single = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    if not where:
        save(state, path / single)
        return
    folder = "parts/" if where == ["folder"] else ""
    names = list(state)
    files = {name: f"{folder}part-{1 + (2 * i >= len(names))}.{ending}" for i, name in enumerate(names)}
    for file in set(files.values()):
        save({name: state[name] for name in names if files[name] == file}, path / file)
    (path / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


FORMS = ("safetensors", "safetensors shards", "safetensors folder", "zip", "legacy", "zip shards", "legacy folder")
