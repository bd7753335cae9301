"""Write an adapter as a directory that PEFT loads.

PEFT adapts GPT-2's queries, keys and values as one module, `c_attn`. So adapters of q, k and v are written as one
adapter whose rank is the sum of theirs. Its A has their A below each other; its B has each of their B in separate rows
and columns, and zeros elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.checkpoint.tensors import write_safetensors
from gpt2x.config.patterns import SEGMENTS
from gpt2x.convert.directories import require_empty
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.lora.peft_config import CONFIG_FILE
from gpt2x.lora.peft_tensors import PREFIX
from gpt2x.lora.shapes import linear_of, split
from gpt2x.model.stats import HEAD
from gpt2x.runtime.files import new_directory


def join_segments(adapter: Adapter) -> dict[str, Product]:
    """Return the adapter's products with those of q, k and v joined to one of `c_attn` in each layer."""
    by_linear: dict[str, list[str]] = {}
    for module in adapter.products:
        by_linear.setdefault(linear_of(module)[0], []).append(module)
    return {linear: join([(linear_of(module)[1], adapter.products[module]) for module in modules])
            for linear, modules in by_linear.items()}  # fmt: skip


def join(parts: list[tuple[int | None, Product]]) -> Product:
    """Join products of different thirds of the columns into one. A product of all columns is the only one."""
    (segment, product), *others = parts
    if segment is None:
        return product
    width = product.b.shape[1]
    scale = product.scale
    assert all(other.scale == scale and other.b.shape[1] == width for _, other in others)
    b = np.zeros((sum(part.rank for _, part in parts), len(SEGMENTS) * width), np.float32)
    row = 0
    for third, part in parts:
        assert third is not None
        b[row : row + part.rank, third * width : (third + 1) * width] = part.b
        row += part.rank
    return Product(np.concatenate([part.a for _, part in parts], axis=1), b, scale)


def peft_config(adapter: Adapter, products: dict[str, Product]) -> dict[str, Any]:
    """Return the adapter_config.json with which PEFT computes what gpt2x computes.

    Rank and alpha are the most frequent ones; the others are in `rank_pattern` and `alpha_pattern`. Alpha follows from
    the scale and the written rank, which for a joined c_attn is the sum of the ranks of its parts.
    """
    ranks = {module: product.rank for module, product in products.items()}
    alphas = {
        module: plain(product.scale * (math.sqrt(product.rank) if adapter.rank_stabilized else product.rank))
        for module, product in products.items()
    }
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    parts = {split(module)[1] for module in products}
    is_everywhere = len(products) == len(parts) * (adapter.num_layers or 0)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if adapter.head is None else "SEQ_CLS",
        "base_model_name_or_path": adapter.base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": adapter.dropout,
        "target_modules": sorted(parts if is_everywhere else products),
        "rank_pattern": {re.escape(module): value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {re.escape(module): value for module, value in alphas.items() if value != alpha},
        "use_rslora": adapter.rank_stabilized,
        "fan_in_fan_out": True,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None if adapter.head is None else ["score"],
    }


def plain(value: float) -> float | int:
    """Return a whole number if `value` is one up to rounding."""
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def export_peft(adapter: Adapter, output: Path) -> None:
    """Write a directory that PEFT loads onto transformers' GPT-2.

    Args:
        adapter: PEFT knows only the number of its labels; their names go into the weight file's metadata.
        output: a directory that does not exist or is empty.

    Raises:
        UserError: `output` is not empty, or cannot be written.
    """
    require_empty(output)
    products = join_segments(adapter)
    tensors = {}
    for module, product in products.items():
        tensors[f"{PREFIX}transformer.{module}.lora_A.weight"] = np.ascontiguousarray(product.a.T)
        tensors[f"{PREFIX}transformer.{module}.lora_B.weight"] = np.ascontiguousarray(product.b.T)
    metadata = {"format": "pt"}
    if adapter.head is not None:
        tensors[f"{PREFIX}{HEAD}"] = adapter.head
        if adapter.labels:
            metadata["labels"] = json.dumps(adapter.labels)
    with new_directory(output) as temporary:
        write_safetensors(temporary / "adapter_model.safetensors", tensors, metadata)
        content = json.dumps(peft_config(adapter, products), indent=2, sort_keys=True)
        (temporary / CONFIG_FILE).write_text(content + "\n", encoding="utf-8")
