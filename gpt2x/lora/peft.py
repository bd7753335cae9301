"""Read and write PEFT's adapter directories (huggingface/peft, src/peft/tuners/lora and utils/save_and_load.py).

PEFT stores `lora_A` (r, in) and `lora_B` (out, r), the transposes of ours, and adapts GPT-2's queries, keys and values
as one module, `c_attn`. So adapters of q, k and v are written as one adapter whose rank is the sum of theirs. Its A has
their A below each other; its B has each of their B in separate rows and columns, and zeros elsewhere.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from gpt2x.checkpoint.tensors import StoredTensor, open_safetensors, write_safetensors
from gpt2x.config.patterns import MODULES, SEGMENTS
from gpt2x.convert.directories import read_json, require_empty
from gpt2x.convert.torch_pickle import open_torch
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, Product
from gpt2x.lora.shapes import linear_of, split
from gpt2x.model.stats import HEAD
from gpt2x.runtime.files import new_directory
from gpt2x.runtime.json_text import parse_json

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = {"adapter_model.safetensors": open_safetensors, "adapter_model.bin": open_torch}
PREFIX = "base_model.model."
FACTOR = re.compile(rf"(?:transformer\.)?(h\.\d+\.(?:{'|'.join(map(re.escape, MODULES[len(SEGMENTS) :]))}))\.lora_(A|B)"
                    r"(?:\.default)?\.weight")  # fmt: skip
# options that change the computation -> their values when they are off
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "bias": ("none", None),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
}


def open_peft(path: Path) -> Adapter:
    """Open the adapter of a PEFT directory, with a classifier's head if it has one.

    Raises:
        UserError: it is not a LoRA adapter of a GPT-2, uses an option that gpt2x lacks, or its files are incomplete.
    """
    config = read_json(path / CONFIG_FILE)
    where = f"adapters={path}: {CONFIG_FILE}"
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{where} has peft_type={config.get('peft_type')!r}, but gpt2x reads only 'LORA'. Merge it with PEFT first."
        )
    for key, values in UNSUPPORTED.items():
        if config.get(key) not in values:
            raise UserError(
                f"{where} has {key}={config[key]!r}, which gpt2x does not support. Merge it with PEFT first."
            )
    factors: dict[str, dict[str, np.ndarray]] = {}
    extras: dict[str, np.ndarray] = {}
    for name, stored in open_weights(path).items():
        short = name.removeprefix(PREFIX)
        if match := FACTOR.fullmatch(short):
            factors.setdefault(match[1], {})[match[2]] = np.ascontiguousarray(stored.read().T, np.float32)
        else:
            extras[short] = stored.read()
    head = extras.pop(HEAD, None)
    unknown = list(extras)
    halves = [module for module, pair in factors.items() if len(pair) < 2 or pair["A"].shape[1] != pair["B"].shape[0]]
    if unknown or halves or not factors:
        fault = f"unknown: {', '.join(unknown[:5])}" if unknown else f"incomplete: {', '.join(halves) or 'all'}"
        raise UserError(
            f"adapters={path}: the tensors are not those of LoRA on GPT-2's {', '.join(MODULES[len(SEGMENTS) :])} "
            f"and a classifier's {HEAD} ({fault}). Give an adapter of a GPT-2."
        )
    scales = {module: scale_of(config, f"transformer.{module}", pair["A"].shape[1], where)
              for module, pair in factors.items()}  # fmt: skip
    return Adapter(
        path=path,
        products={module: Product(pair["A"], pair["B"], scales[module]) for module, pair in factors.items()},
        dropout=float(config.get("lora_dropout") or 0.0),
        rank_stabilized=bool(config.get("use_rslora")),
        base=config.get("base_model_name_or_path"),
        head=None if head is None else np.ascontiguousarray(head, np.float32),
        labels=None if head is None else labels_of(path),
    )


def scale_of(config: dict[str, Any], module: str, rank: int, where: str) -> float:
    """Return the scale of a module's product: alpha / r or alpha / sqrt(r), with alpha by `alpha_pattern`.

    Raises:
        UserError: alpha is not a number, or the configuration's rank is not that of the tensors.
    """
    alpha = by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    stated = by_pattern(config.get("rank_pattern"), module, config.get("r", 8))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise UserError(f"{where} has lora_alpha={alpha!r} for {module}; it must be a number.")
    if stated != rank:
        raise UserError(
            f"{where} has r={stated!r}, but {module} has rank {rank}, so its files do not belong together. "
            "Copy or download the adapter again."
        )
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def by_pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's name (peft/utils/other.py, get_pattern_key)."""
    matches = (value for pattern, value in (patterns or {}).items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(matches, default)


def open_weights(path: Path) -> dict[str, StoredTensor]:
    """Open the weight file; the values of its tensors are not read."""
    for name, open_file in WEIGHT_FILES.items():
        if (path / name).is_file():
            return open_file(path / name)
    raise UserError(
        f"adapters={path} has {CONFIG_FILE} but no weights: none of {', '.join(WEIGHT_FILES)} exists. "
        "Copy or download them."
    )


def labels_of(path: Path) -> list[str] | None:
    """Return the classes that `export_peft` wrote into the weight file's metadata; PEFT's files name none."""
    file = path / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, "numpy") as opened:
        labels = (opened.metadata() or {}).get("labels")
    return None if labels is None else parse_json(labels, f"{file}: its labels", "Write the adapter again.")


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
