"""Hugging Face GPT-2 directories, opened and written (transformers' modeling_gpt2.py)."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

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
from gpt2x.convert.base import WeightsSource
from gpt2x.convert.directories import read_json, require_empty
from gpt2x.convert.fit import check_weights
from gpt2x.convert.huggingface_config import config_from_model, model_from_config
from gpt2x.convert.tokenizer_files import copy_tokenizer, has_tokenizer, special_ids
from gpt2x.convert.torch_pickle import open_torch
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes
from gpt2x.runtime.files import new_directory

log = logging.getLogger(__name__)

# in the order in which transformers looks for them
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
PREFIX = "transformer."
HEADS = ("lm_head.", "score.")  # tensors without the prefix
MASK_BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants that old versions of transformers stored


class HuggingFaceWeights:
    """A Hugging Face GPT-2 directory whose names and shapes fit its config.json."""

    kind = "huggingface"

    def __init__(self, path: Path, model: ModelConfig, stored: dict[str, StoredTensor]):
        self.path = path
        self.model = model
        self.tokenizer_dir = path if has_tokenizer(path) else None
        self._stored = stored

    def weights(self) -> LazyTensors:
        """Return the logical tensors in their stored dtype; bfloat16 is read as float32."""
        return lazy_tensors(self._stored)

    def verify(self) -> None:
        """Do nothing. A Hugging Face directory states no hashes, and opening it has checked the sizes."""


def open_huggingface(path: Path) -> HuggingFaceWeights:
    """Open a directory and check it. No values are read, except those of a tied head that is stored nevertheless.

    Raises:
        UserError: config.json, names, shapes or files are wrong.
    """
    model = model_from_config(read_json(path / "config.json"), path)
    stored = _logical_names(_open_weights(path), path)
    if model.labels:
        stored.pop("lm_head.weight", None)
    if model.tie_embeddings and "lm_head.weight" in stored:
        both = lazy_tensors({name: stored[name] for name in ("lm_head.weight", "wte.weight") if name in stored})
        del stored["lm_head.weight"]
        if "wte.weight" in both and not _equal(both.box("lm_head.weight"), both.box("wte.weight")):
            log.warning(
                "load=%s: lm_head.weight differs from wte.weight and is ignored, because config.json ties them (as "
                'transformers does). To use the head, write "tie_word_embeddings": false into config.json.',
                path,
            )
    check_weights(lazy_tensors(stored), model, origin=f"load={path}")
    return HuggingFaceWeights(path, model, {name: stored[name] for name in tensor_shapes(model)})


def export_huggingface(source: WeightsSource, output: Path) -> None:
    """Write a directory that transformers loads: config, generation config, safetensors, tokenizer files.

    Args:
        source: the model. Its values are written in the dtype that they have.
        output: a directory that does not exist or is empty.

    Raises:
        UserError: `output` is not empty, or cannot be written.
    """
    require_empty(output)
    weights = source.weights()
    eos_id = None if source.tokenizer_dir is None else special_ids(source.tokenizer_dir).get("eos_token")
    config = config_from_model(source.model, eos_id=eos_id, dtype=weights.specs["wte.weight"].dtype.name)
    generation = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id}
    with new_directory(output) as temporary:
        _write_weights(weights, temporary)
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if source.tokenizer_dir is not None:
            copy_tokenizer(source.tokenizer_dir, temporary)


def _write_weights(weights: LazyTensors, folder: Path) -> None:
    """Write one file, or several and their index, like transformers' save_pretrained."""
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


def lazy_tensors(stored: Mapping[str, StoredTensor]) -> LazyTensors:
    """Return stored tensors as `LazyTensors`: each is read on access."""
    specs = {name: Spec(tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    return LazyTensors(specs, lambda name, start, shape: stored[name].read(start, shape))


def _equal(first: LazyBox, second: LazyBox) -> bool:
    """Return whether two tensors have the same values; one piece of each is in memory at a time."""
    return first.shape == second.shape and all(
        np.array_equal(a, b) for a, b in zip(pieces(first), pieces(second), strict=True)
    )


def _open_weights(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of the first kind of weight file that exists, under their names in the file."""
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            break
    else:
        raise UserError(
            f"load={path} has a config.json but no weights: none of {', '.join(WEIGHT_FILES)} exists. "
            "Copy or download the weights."
        )
    open_file = open_safetensors if "safetensors" in name else open_torch
    if not name.endswith(".index.json"):
        return open_file(path / name)
    weight_map = read_json(path / name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise UserError(f"{path / name} has no weight_map of names to files. Copy or download it again.")
    shards = sorted(set(weight_map.values()))
    absent = [file for file in shards if Path(file).name != file or not (path / file).is_file()]
    if absent:
        raise UserError(
            f"load={path}: {name} names {', '.join(absent)}, which the directory does not contain. "
            "Copy or download all shards."
        )
    return {key: tensor for file in shards for key, tensor in open_file(path / file).items()}


def _logical_names(stored: dict[str, StoredTensor], path: Path) -> dict[str, StoredTensor]:
    """Drop the prefix `transformer.` and the mask buffers."""
    logical: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        short = name.removeprefix(PREFIX)
        if MASK_BUFFER.fullmatch(short):
            continue
        if short in logical:
            raise UserError(f"load={path}: {short} occurs twice, with and without {PREFIX!r}. Remove one of them.")
        logical[short] = tensor
    return logical
