"""Hugging Face GPT-2 directories, opened and written (transformers' modeling_gpt2.py)."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from gpt2x.checkpoint.tensors import LazyTensors, StoredTensor, write_safetensors
from gpt2x.checkpoint.write import numbered, split
from gpt2x.config import ModelConfig
from gpt2x.convert.base import WeightsSource
from gpt2x.convert.directories import read_json, require_empty
from gpt2x.convert.fit import check_weights
from gpt2x.convert.huggingface_config import config_from_model, model_from_config, notices, query_factors
from gpt2x.convert.huggingface_files import open_weights
from gpt2x.convert.huggingface_names import (
    HEADS,
    PREFIX,
    lazy_tensors,
    logical_names,
    tied,
    with_query_factors,
    without_other_heads,
)
from gpt2x.convert.special_ids import GENERATION_FILE, SpecialIds, special_ids_from_files, special_ids_of_tokenizer
from gpt2x.convert.tokenizer_files import TOKENIZER_FILES, copy_tokenizer, has_tokenizer, special_ids
from gpt2x.model.stats import tensor_shapes
from gpt2x.runtime.files import new_directory
from gpt2x.runtime.hub import check_blob, check_blobs

log = logging.getLogger(__name__)


class HuggingFaceWeights:
    """A Hugging Face GPT-2 directory whose names and shapes fit its config.json."""

    kind = "huggingface"

    def __init__(self, path: Path, model: ModelConfig, stored: dict[str, StoredTensor], factors: list[float]):
        self.path = path
        self.model = model
        self.tokenizer_dir = path if has_tokenizer(path) else None
        self.special_ids = special_ids_from_files(path)
        self._stored = stored
        self.query_factors = factors

    def weights(self) -> LazyTensors:
        """Return the logical tensors in their stored dtype; bfloat16 is read as float32, and so are scaled queries."""
        return with_query_factors(lazy_tensors(self._stored), self.query_factors)

    def verify(self) -> None:
        """Hash the files of weights that the cache of the hub names by their content (about 1 GB/s).

        Any other Hugging Face directory states no hashes, and opening it has checked the sizes.

        Raises:
            UserError: a file is damaged.
        """
        for file in sorted({tensor.file for tensor in self._stored.values()}):
            check_blob(file)


def open_huggingface(path: Path) -> HuggingFaceWeights:
    """Open a directory and check it. No values are read, except those of a tied head that is stored nevertheless.

    Raises:
        UserError: config.json, names, shapes or files are wrong.
    """
    check_blobs(path, ("config.json", GENERATION_FILE, *TOKENIZER_FILES))
    config = read_json(path / "config.json")
    model, factors = model_from_config(config, path), query_factors(config, path)
    stored = without_other_heads(logical_names(open_weights(path, config), path), model, path)
    stored, model = tied(stored, model, path)
    check_weights(lazy_tensors(stored), model, origin=f"load={path}")
    for notice in notices(config, path):
        log.warning("%s", notice)
    if (path / "adapter_config.json").is_file():
        log.warning(
            "load=%s has an adapter beside the model, which transformers adds. Give 'adapters=[%s]' as well to do "
            "so, or remove adapter_config.json.", path, path,
        )  # fmt: skip
    return HuggingFaceWeights(path, model, {name: stored[name] for name in tensor_shapes(model)}, factors)


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
    ids = source.special_ids or tokenizer_ids(source)
    config = config_from_model(source.model, ids, dtype=weights.specs["wte.weight"].dtype.name)
    with new_directory(output) as temporary:
        _write_weights(weights, temporary)
        for name, content in (("config.json", config), (GENERATION_FILE, ids.generation)):
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (temporary / name).write_text(text + "\n", encoding="utf-8")
        if source.tokenizer_dir is not None:
            copy_tokenizer(source.tokenizer_dir, temporary)


def tokenizer_ids(source: WeightsSource) -> SpecialIds:
    """Return the ids that the tokenizer's files give a model that states none; without files no id is named."""
    roles = special_ids(source.tokenizer_dir) if source.tokenizer_dir else {}
    return special_ids_of_tokenizer(
        roles.get("eos_token"), roles.get("bos_token"), roles.get("pad_token"), is_classifier=bool(source.model.labels)
    )


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
