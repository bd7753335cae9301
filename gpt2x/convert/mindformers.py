"""MindFormers' GPT-2, opened and written: `.ckpt` files by the names of the reference, beside a YAML file."""

from __future__ import annotations

import logging
from pathlib import Path

import yaml

from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.config import ModelConfig
from gpt2x.convert.base import WeightsSource
from gpt2x.convert.directories import require_empty
from gpt2x.convert.fit import check_weights
from gpt2x.convert.mindformers_config import config_of_model, lora_scale, model_of, read_config
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
from gpt2x.model.stats import tensor_shapes
from gpt2x.runtime.files import new_directory

log = logging.getLogger(__name__)


class MindFormersWeights:
    """The weights of a MindFormers checkpoint, as a `WeightsSource`; LoRA's products are added to them."""

    kind = "mindformers"

    def __init__(self, path: Path, opened: Opened, model: ModelConfig, tensors: LazyTensors):
        self.path = path
        self.model = model
        self.tokenizer_dir = opened.folder if has_tokenizer(opened.folder) else None
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
