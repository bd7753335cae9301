"""A trained model ready to use: weights, configuration and tokenizer from the directory of `load=`.

`open_pretrained` checks a directory without reading its weights; `build_pretrained` builds this process' part of the
model and reads its part of the weights. `load_pretrained` does both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mindspore import Tensor, ops

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TokenizerConfig
from gpt2x.config.layout import Coordinates, fitted_to
from gpt2x.convert import WeightsSource, load_source
from gpt2x.convert.fit import Finite
from gpt2x.convert.special_ids import SpecialIds, special_ids_of_tokenizer
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, adapted_model, check_base, check_fits, special_ids_with
from gpt2x.lora.merge import changed_weights, merged
from gpt2x.lora.open import adapters_by_name
from gpt2x.model.gpt2 import GPT2, Linear
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable, placements
from gpt2x.parallel.tensor import build_net

log = logging.getLogger(__name__)


@dataclass
class Pretrained:
    """The model of `load=`, built and loaded.

    Attributes:
        net: this process' part of the model.
        model: its configuration, as the directory states it, with the classes of the adapters' head.
        tokenizer: the checkpoint tokenizer, or the configured one.
        source: the directory.
        special_ids: what starts, ends and pads the model's texts, as the directory states it, else the tokenizer's.
        adapter: the adapter that is merged into the net's weights.
    """

    net: GPT2
    model: ModelConfig
    tokenizer: Tokenizer
    source: WeightsSource
    special_ids: SpecialIds
    adapter: Adapter | None = None

    @property
    def prefix_id(self) -> int:
        """The token that precedes a text whose first token is scored: the tokenizer's BOS, EOS if it has no BOS."""
        return self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id


class OpenedModel(NamedTuple):
    """The directory of `load=`, opened and checked; its weights are unread.

    Attributes:
        source: the directory.
        tokenizer: the checkpoint tokenizer, or the configured one.
        model: its configuration, padded for the layout, with the classes of the adapters' head.
        special_ids: what starts, ends and pads the model's texts.
    """

    source: WeightsSource
    tokenizer: Tokenizer
    model: ModelConfig
    special_ids: SpecialIds


def load_pretrained(
    load: str,
    hardware: HardwareConfig,
    tokenizer: TokenizerConfig,
    mesh: Mesh | None = None,
    adapters: Sequence[Adapter] = (),
    *,
    verify: bool = True,
) -> Pretrained:
    """Build the model that the directory `load` describes, with its weights and tokenizer.

    Only this process' part of the weights is read, one tensor after the other.

    Args:
        load: a gpt2x checkpoint, a run or a Hugging Face directory.
        hardware: the device.
        tokenizer: for a directory that has no tokenizer.
        mesh: the processes, by data and tensor axes; None if there is only this process.
        adapters: the adapters that will be used; the first is merged into the weights (`use_adapter` changes it).
        verify: whether to hash the weights.

    Raises:
        UserError: the directory is not a checkpoint, its weights or tokenizer do not fit, its model does not fit the
            layout, or the adapters are of a different model, were trained beside different weights, or make
            different models of it.
    """
    mesh = mesh or Mesh(ParallelConfig(name="single"))
    opened = open_pretrained(load, tokenizer, mesh.coordinates.parallel, adapters, verify=verify)
    return build_pretrained(opened, hardware, mesh, adapters)


def build_pretrained(
    opened: OpenedModel, hardware: HardwareConfig, mesh: Mesh, adapters: Sequence[Adapter] = ()
) -> Pretrained:
    """Build this process' part of an opened model and read its weights.

    Args:
        opened: from `open_pretrained`, for the layout of `mesh` and the same adapters.
        hardware: the device.
        mesh: the processes.
        adapters: the adapters that will be used; the first is merged into the weights.

    Raises:
        UserError: another process has opened a different directory.
    """
    source, tokenizer, model, special_ids = opened
    require_same(mesh, "the directory of load=", source.path.name)
    net = with_inference_dtypes(build_net(model, hardware, mesh))
    first = adapters[0] if adapters else None
    read_weights(net, weights_of(source, first), model, mesh.coordinates)
    return Pretrained(net, replace(source.model, labels=model.labels), tokenizer, source, special_ids, first)


def weights_of(source: WeightsSource, adapter: Adapter | None) -> Finite:
    """Return the weights of a model, with an adapter merged into them; values that are NaN or infinite are rejected."""
    weights = merged(source.weights(), adapter) if adapter else source.weights()
    return Finite(weights, f"load={source.path}" + (f" with adapters=[{adapter.path}]" if adapter else ""))


def with_inference_dtypes(net: GPT2) -> GPT2:
    """Store the matrices of blocks in the compute dtype, which a product would cast them to each time.

    In fp16, and on Ascend in bf16, this halves what decoding reads. Biases, layer norms and embeddings stay fp32.
    """
    for _, cell in net.cells_and_names():
        if isinstance(cell, Linear):
            cell.weight.set_dtype(cell.dtype)
    return net


def read_weights(net: GPT2, weights: Readable, model: ModelConfig, coordinates: Coordinates) -> None:
    """Set the parameters of `net` that are tensors of `model`, one after the other; the others stay as they are."""
    parts = placements(model, coordinates)
    for parameter in net.get_parameters():
        if parameter.name in parts:
            parameter.set_data(Tensor(parts[parameter.name].read(weights, parameter.name), parameter.dtype))


def use_adapter(pretrained: Pretrained, adapter: Adapter, mesh: Mesh) -> None:
    """Merge an adapter into the weights of a loaded model, instead of the one that is merged now.

    Args:
        pretrained: the model; its graphs may have run.
        adapter: one of the adapters with which the model was loaded.
        mesh: the processes.
    """
    if adapter is pretrained.adapter:
        return
    before = changed_weights(pretrained.adapter) if pretrained.adapter else set()
    weights = weights_of(pretrained.source, adapter)
    parts = placements(pretrained.model, mesh.coordinates)
    for parameter in pretrained.net.get_parameters():
        if parameter.name in before | changed_weights(adapter):
            ops.assign(parameter, Tensor(parts[parameter.name].read(weights, parameter.name), parameter.dtype))
    pretrained.adapter = adapter


def open_adapters(directories: list[str]) -> list[Adapter]:
    """Open adapters, whose names must differ.

    Raises:
        UserError: one cannot be opened, or two have the same name.
    """
    return list(adapters_by_name(directories).values())


def choose_adapter(directories: list[str], name: str | None) -> list[Adapter]:
    """Open the adapter called `name`, or the only one; an empty list if there are no directories.

    Raises:
        UserError: one cannot be opened, or there are several and none is called `name`.
    """
    adapters = adapters_by_name(directories)
    if name is None and len(adapters) <= 1:
        return list(adapters.values())
    if name not in adapters:
        raise UserError(
            f"adapter={name or 'null'} is not one of adapters=. Give adapter= one of: {', '.join(adapters)}."
        )
    return [adapters[name]]


def open_pretrained(
    load: str,
    tokenizer: TokenizerConfig,
    parallel: ParallelConfig,
    adapters: Sequence[Adapter] = (),
    *,
    verify: bool = True,
) -> OpenedModel:
    """Open the directory `load` and check it, without reading its weights.

    Args:
        load: a gpt2x checkpoint, a run or a Hugging Face directory.
        tokenizer: for a directory that has no tokenizer.
        parallel: the layout.
        adapters: the adapters that will be used.
        verify: whether to hash the weights and compare them with the adapters' base. One process per run does it.

    Raises:
        UserError: for the reasons of `load_pretrained`.
    """
    source = load_source(load, verify=verify)
    checkpoint_tokenizer = source_tokenizer(source, tokenizer)
    limit_to_rows(checkpoint_tokenizer, source.model, f"load={load}")
    for adapter in adapters:
        check_fits(adapter, source, load)
    if verify:
        check_base(adapters, source.weights(), load)
    model = adapted_model(source.model, adapters, load)
    ids = special_ids_with(adapters, source) or tokenizer_ids(checkpoint_tokenizer, model)
    return OpenedModel(source, checkpoint_tokenizer, fitted_to(model, parallel, f"load={load}"), ids)


def tokenizer_ids(tokenizer: Tokenizer, model: ModelConfig) -> SpecialIds:
    """Return the ids of a model that was trained with `tokenizer`, and whose files state none."""
    return special_ids_of_tokenizer(
        tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, is_classifier=model.is_classifier
    )


def source_tokenizer(source: WeightsSource, config: TokenizerConfig) -> Tokenizer:
    """Return the checkpoint tokenizer, or the configured one if there is none or if tokenizer.extend adds tokens.

    Raises:
        UserError: there is neither, or tokenizer.path is a different tokenizer than the checkpoint's.
    """
    if source.tokenizer_dir is None:
        return _configured_tokenizer(source, config)
    stored = Tokenizer.load(source.tokenizer_dir, config.eos_token)
    # without tokenizer.extend the path is only compared, so it may be missing on this machine
    if config.path is None or not (config.extend or Path(config.path).expanduser().exists()):
        return stored
    configured = Tokenizer.load(config.path, config.eos_token)
    if configured.fingerprint == stored.fingerprint:
        return stored
    extends = configured.extends(stored)
    if config.extend and extends:
        return configured
    fix = "Drop tokenizer.path"
    if extends:
        fix += ", or give tokenizer.extend=true to train with the tokens that it adds"
    elif config.extend:
        fix = f"tokenizer.extend=true requires the same first {stored.vocab_size} ids and end-of-text token"
    raise UserError(
        f"tokenizer.path={config.path} ({configured.vocab_size} tokens) is not the tokenizer with which "
        f"load={source.path} was trained ({stored.vocab_size} tokens). {fix}."
    )


def _configured_tokenizer(source: WeightsSource, config: TokenizerConfig) -> Tokenizer:
    if config.extend:
        raise UserError(
            f"tokenizer.extend=true: load={source.path} holds no tokenizer with which tokenizer.path={config.path} "
            "can be compared. Copy the tokenizer with which it was trained into that directory."
        )
    if config.path is None:
        raise UserError(
            f"load={source.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt). "
            "Give tokenizer.path=DIRECTORY."
        )
    return Tokenizer.load(config.path, config.eos_token)


def limit_to_rows(tokenizer: Tokenizer, model: ModelConfig, origin: str) -> None:
    """Limit the tokenizer of a loaded model to the tokens that have a row of its embedding.

    Raises:
        UserError: tokens that are not added ones, or the end-of-text token, have no row.
    """
    size = tokenizer.vocab_size
    if model.vocab_size is not None and size > model.vocab_size and tokenizer.limit_to(model.vocab_size):
        log.warning(
            "%s: the tokenizer has added tokens up to the id %d, but the embedding has only %d rows. Texts with tokens "
            "beyond are rejected.", origin, size - 1, model.vocab_size,
        )  # fmt: skip
    check_vocabulary(tokenizer, model, origin)


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, origin: str) -> None:
    """Check that the embedding has a row for each of the tokenizer's ids.

    Raises:
        UserError: the tokenizer has more tokens than `model.vocab_size`.
    """
    if model.vocab_size is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} tokens, but the embedding has only "
            f"model.vocab_size={model.vocab_size} rows. Use the tokenizer with which the checkpoint was trained; for "
            "a new model, give model.vocab_size=null (the tokenizer's size)."
        )
