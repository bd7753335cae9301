"""MindFormers' GPT-2, opened and written: `.ckpt` files by the names of the reference, beside a YAML file."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.config import ModelConfig
from gpt2x.convert.base import WeightsSource
from gpt2x.convert.directories import require_empty
from gpt2x.convert.fit import check_weights
from gpt2x.convert.huggingface_config import model_from_config, query_factors
from gpt2x.convert.mindformers_config import (
    config_of_model,
    default_labels,
    lora_scale,
    model_of,
    read_config,
    shape_of,
)
from gpt2x.convert.mindformers_files import Opened, open_files
from gpt2x.convert.mindformers_names import (
    BLOCKS,
    OUTER,
    WITHIN,
    Parameters,
    logical_tensors,
    reference_tensors,
    sort_parameters,
)
from gpt2x.convert.mindspore_ckpt import write_ckpt
from gpt2x.convert.tokenizer_files import copy_tokenizer, has_tokenizer, special_ids
from gpt2x.errors import UserError
from gpt2x.model.stats import ffn_size, tensor_shapes
from gpt2x.runtime.files import new_directory

log = logging.getLogger(__name__)

HUGGINGFACE_KEYS = {"n_head", "num_attention_heads", "n_embd", "activation_function"}  # of its config.json


class MindFormersWeights:
    """The weights of a MindFormers checkpoint, as a `WeightsSource`; LoRA's products are added to them."""

    kind = "mindformers"
    query_factors = ()

    def __init__(self, path: Path, opened: Opened, model: ModelConfig, tensors: LazyTensors):
        self.path = path
        self.model = model
        self.tokenizer_dir = opened.folder if has_tokenizer(opened.folder) else None
        self.special_ids = None  # the YAML file has MindFormers' defaults, whatever the tokenizer
        self._opened, self._tensors = opened, tensors

    def weights(self) -> LazyTensors:
        """Return the logical tensors in their stored dtype; bfloat16 is read as float32."""
        return self._tensors

    def verify(self) -> None:
        """Compare CRC-32 sums, in files that state them.

        Raises:
            UserError: a file is damaged.
        """
        self._opened.verify()


def open_mindformers(path: Path) -> MindFormersWeights:
    """Open a `.ckpt` file, or a folder with one or with slices of several ranks. No values are read.

    Raises:
        UserError: files, names, shapes or the YAML file are wrong, or do not belong together.
    """
    origin = f"load={path}"
    opened = open_files(path, "load")
    parameters = sort_parameters(opened.stored, origin)
    if parameters.factors and not parameters.weights:
        raise UserError(f"{origin} holds LoRA's factors and no model. Give load=BASE 'adapters=[{path}]'.")
    config = None if opened.config_file is None else read_config(opened.config_file)
    if config and opened.config_file and "num_heads" not in config and HUGGINGFACE_KEYS & set(config):
        model = _model_by_huggingface(parameters, config, origin, opened.config_file)
    else:
        model = model_of(parameters, config, origin, opened.config_file)
    _check_complete(parameters, model, origin)
    scale = 1.0
    if parameters.rank is not None:
        scale = lora_scale(config, parameters.rank, origin)
        log.warning(
            "%s: LoRA's factors (rank %d) of %d linears are added to the weights, times %g.",
            origin, parameters.rank, len(parameters.factors), scale,
        )  # fmt: skip
    if parameters.num_states:
        log.warning(
            "%s: %d states of its optimizer and training are not used; training starts anew from the weights.",
            origin, parameters.num_states,
        )  # fmt: skip
    tensors = logical_tensors(parameters, scale)
    check_weights(tensors, model, origin=origin)
    ordered = {name: tensors.specs[name] for name in tensor_shapes(model)}
    return MindFormersWeights(path, opened, model, LazyTensors(ordered, tensors.read))


def _model_by_huggingface(parameters: Parameters, config: dict[str, Any], origin: str, file: Path) -> ModelConfig:
    """Return the model by Hugging Face's config.json, which lies beside weights that were converted from there.

    Raises:
        UserError: it is not the model of the parameters, or is one that MindFormers cannot have written.
    """
    stated, shape = model_from_config(config, file.parent), shape_of(parameters, origin)
    sizes = {
        "n_layer": (stated.num_layers, shape["num_layers"]),
        "n_embd": (stated.hidden_size, shape["hidden_size"]),
        "n_positions": (stated.max_seq_len, shape["max_position_embeddings"]),
        "vocab_size": (stated.vocab_size, shape["vocab_size"]),
        "n_inner": (ffn_size(stated), shape["ffn_size"]),
        "num_labels": (len(stated.labels or default_labels(shape) or []), shape.get("num_labels", 0)),
        "tie_word_embeddings": (stated.tie_embeddings or stated.labels is not None, True),
        "factors of attention": (set(query_factors(config, file.parent)), {1.0}),
    }
    faults = [f"{key}={said} instead of {actual}" for key, (said, actual) in sizes.items() if said != actual]
    if faults:
        raise UserError(f"{origin}: {file} belongs to a different model than the tensors: {', '.join(faults)}. "
                        "Give the right one, or a YAML file.")  # fmt: skip
    return replace(stated, labels=stated.labels or default_labels(shape))


def _check_complete(parameters: Parameters, model: ModelConfig, origin: str) -> None:
    """Check that all parameters are there and have their shapes, by their names in the file.

    Raises:
        UserError: lists those that are missing or mis-shaped.
    """
    logical = tensor_shapes(model)
    hidden = model.hidden_size
    expected = {name: logical[OUTER[name]] for name in OUTER if OUTER[name] in logical}
    for layer in range(model.num_layers):
        for within, name in WITHIN.items():
            shape = logical[f"h.{layer}.{name}"]
            is_segment = "dense" in within
            expected[f"{BLOCKS}{layer}.{within}"] = (hidden,) * len(shape) if is_segment else shape
    faults = {
        "missing": [name for name in expected if name not in parameters.weights],
        "mis-shaped": [
            f"{name} {parameters.weights[name].shape} instead of {shape}"
            for name, shape in expected.items()
            if name in parameters.weights and parameters.weights[name].shape != shape
        ],
    }
    for linear, pair in parameters.factors.items():
        weight = expected.get(f"{linear}.weight", (0, 0))
        size = (pair.b.shape[0], pair.a.shape[1])
        if size != (weight if "dense" in linear else weight[::-1]):
            faults["mis-shaped"].append(f"LoRA's factors of {linear} for {size} instead of {weight}")
    if any(faults.values()):
        listed = "".join(
            f"\n  {fault}: {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            for fault, names in faults.items()
            if names
        )
        raise UserError(
            f"{origin}: the parameters are not those of a GPT-2 of {model.num_layers} layers and hidden size {hidden}; "
            "nothing was loaded. If they are slices of a distributed run, give the folder of rank_0, rank_1 and so on "
            f"with its strategy files.{listed}"
        )


def export_mindformers(source: WeightsSource, output: Path) -> None:
    """Write mindspore_model.ckpt, mindspore_model.yaml and tokenizer files, which MindFormers' from_pretrained loads.

    Values keep their dtype. The order of the parameters is that of MindFormers' converter.

    Args:
        source: the model.
        output: a directory that does not exist or is empty.

    Raises:
        UserError: `output` is not empty or cannot be written, or MindFormers cannot compute the model.
    """
    require_empty(output)
    ids = {} if source.tokenizer_dir is None else special_ids(source.tokenizer_dir)
    config = config_of_model(source.model, ids, str(source.path))
    tensors = reference_tensors(source.weights(), source.model.num_layers)
    with new_directory(output) as temporary:
        write_ckpt(temporary / "mindspore_model.ckpt", {name: tensors.box(name) for name in tensors})
        text = yaml.safe_dump(config, sort_keys=False)
        (temporary / "mindspore_model.yaml").write_text(text, encoding="utf-8")
        if source.tokenizer_dir is not None:
            copy_tokenizer(source.tokenizer_dir, temporary)
