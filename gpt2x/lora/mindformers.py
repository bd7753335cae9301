"""Adapters in MindFormers' checkpoints: mindpet's LoRA, beside the whole model or only what was trained.

MindFormers writes neither alpha nor the targets into a `.ckpt` file. Alpha comes from `pet_config` of the YAML file.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2x.convert.mindformers_config import lora_dropout, lora_scale, read_config
from gpt2x.convert.mindformers_files import open_files
from gpt2x.convert.mindformers_names import BLOCKS, LINEARS, SEGMENTS, Factors, sort_parameters
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.model.stats import HEAD

MODULES = LINEARS | {f"attention.{name}": f"attn.{part}" for name, part in zip(SEGMENTS, "qkv", strict=True)}
WORDS = "backbone.embedding.word_embedding.embedding_table"


def open_mindformers_adapter(path: Path) -> Adapter:
    """Open the factors of LoRA in a `.ckpt` file or its folder; the other weights are not read.

    Raises:
        UserError: there are no factors, alpha is not stated, or weights were trained beside the factors.
    """
    origin = f"adapters={path}"
    opened = open_files(path, "adapters")
    opened.verify()
    parameters = sort_parameters(opened.stored, origin)
    if parameters.rank is None:
        raise UserError(f"{origin} holds a model without LoRA's factors. Give it as load={path}.")
    is_whole = WORDS in parameters.weights
    if not is_whole and (others := [name for name in parameters.weights if name != HEAD]):
        raise UserError(
            f"{origin} holds weights that were trained beside LoRA's factors ({', '.join(others[:3])}), which an "
            "adapter cannot have. Give the checkpoint of the whole model as load=."
        )
    config = None if opened.config_file is None else read_config(opened.config_file)
    scale = lora_scale(config, parameters.rank, origin)
    head = parameters.weights.get(HEAD)
    return Adapter(
        path=opened.files[0] if len(opened.files) == 1 else path,
        products={_module(linear): _product(pair, scale) for linear, pair in parameters.factors.items()},
        dropout=lora_dropout(config),
        num_layers=parameters.num_layers if is_whole else None,
        head=None if head is None else np.ascontiguousarray(head.read(), np.float32),
        is_added_by_load=is_whole,
    )


def _module(linear: str) -> str:
    """Return our name of a linear: `backbone.blocks.0.attention.dense1` -> `h.0.attn.q`."""
    number, _, within = linear.removeprefix(BLOCKS).partition(".")
    return f"h.{int(number)}.{MODULES[within]}"


def _product(pair: Factors, scale: float) -> Product:
    """Return the factors (r, in) and (out, r) as ours, (in, r) and (r, out)."""
    a, b = (np.ascontiguousarray(factor.read().T, np.float32) for factor in (pair.a, pair.b))
    return Product(a, b, scale)
