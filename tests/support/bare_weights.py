"""Directories of weights as users bring them: drawn, not trained, and written without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from gpt2x.config import ModelConfig
from gpt2x.convert.huggingface_config import config_from_model
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.model.stats import tensor_shapes
from tests.support.small_runs import WORDS


def bare_model(**changes: Any) -> ModelConfig:
    """Return a model that no option of conf/model has, of 280 tokens."""
    values = {"name": "bare", "num_layers": 2, "num_heads": 2, "hidden_size": 16, "max_seq_len": 48,
              "vocab_size": 280, "dropout": 0.25, "activation": "gelu", "layer_norm_eps": 1e-6}  # fmt: skip
    return ModelConfig(**(values | changes))


def write_huggingface(folder: Path, model: ModelConfig, *, tokenizer: bool = True, **config: Any) -> Path:
    """Write a Hugging Face directory of a model, with random weights and a byte-level BPE tokenizer."""
    folder.mkdir(parents=True)
    content = (
        config_from_model(
            model, SpecialIds(dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0), {}), dtype="float32"
        )
        | config
    )
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    generator = np.random.default_rng(0)
    shapes = tensor_shapes(model)
    save_file(
        {name: generator.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    if tokenizer:
        byte_level_bpe.train(iter([" ".join(WORDS)] * 3), model.vocab_size).save(folder)
    return folder
