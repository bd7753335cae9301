"""A trained model ready to use: weights, configuration and tokenizer from one directory (floor 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mindspore import Tensor, ops

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TokenizerConfig
from gpt2x.config.layout import Coordinates, validate_layout
from gpt2x.convert import Source, load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, adapted_model, check_base, check_fits, named
from gpt2x.lora.merge import changed, merged
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable, placements
from gpt2x.parallel.tensor import build_net


@dataclass
class Pretrained:
    """What `load=` stands for.

    Attributes:
        net: what this process holds of the model.
        model: as the directory states it; with the head of its adapters, a classifier.
        tokenizer: its own.
        source: where it comes from.
        adapter: what is merged into the net's weights.
    """

    net: GPT2
    model: ModelConfig
    tokenizer: Tokenizer
    source: Source
    adapter: Adapter | None = None


class OpenedModel(NamedTuple):
    """A directory of `load=`, checked, its weights unread.

    Attributes:
        source: the directory.
        tokenizer: its tokenizer, or the configured one.
        model: padded for a layout, with the head that adapters add.
    """

    source: Source
    tokenizer: Tokenizer
    model: ModelConfig


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

    Of the weights only what this process holds is read, one tensor after the other.

    Args:
        load: a gpt2x checkpoint, a run or a Hugging Face directory.
        hardware: the device.
        tokenizer: for a directory that has none.
        mesh: the processes, by data and tensor axes; None: this one alone.
        adapters: those that the model will be used with; the first is merged into its weights (`use_adapter`).
        verify: whether to hash the weights.

    Raises:
        UserError: for a directory that is no checkpoint, weights that do not fit, a tokenizer that disagrees, a
            model that cannot be shared out as `mesh` is, or adapters that are of another model, were trained beside
            other weights, or make different models of it.
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
        adapters: those that the model will be used with; the first is merged into its weights.

    Raises:
        UserError: another process has opened a different directory.
    """
    source, tokenizer, model = opened
    require_same(mesh, "the directory of load=", source.path.name)
    net = build_net(model, hardware, mesh)
    first = adapters[0] if adapters else None
    read_weights(net, merged(source.weights(), first) if first else source.weights(), model, mesh.coordinates)
    return Pretrained(net, replace(source.model, labels=model.labels), tokenizer, source, first)


def read_weights(net: GPT2, weights: Readable, model: ModelConfig, coordinates: Coordinates) -> None:
    """Set what `net` holds of a model, tensor by tensor; its other parameters are left as they are."""
    parts = placements(model, coordinates)
    for parameter in net.get_parameters():
        if parameter.name in parts:
            parameter.set_data(Tensor(parts[parameter.name].read(weights, parameter.name)))


def use_adapter(pretrained: Pretrained, adapter: Adapter, mesh: Mesh) -> None:
    """Merge an adapter into the weights of a loaded model, in place of the one before it.

    Args:
        pretrained: the model; its graphs may have run.
        adapter: one of those that the model was loaded with.
        mesh: the processes.
    """
    if adapter is pretrained.adapter:
        return
    before = changed(pretrained.adapter) if pretrained.adapter else set()
    weights = merged(pretrained.source.weights(), adapter)
    parts = placements(pretrained.model, mesh.coordinates)
    for parameter in pretrained.net.get_parameters():
        if parameter.name in before | changed(adapter):
            ops.assign(parameter, Tensor(parts[parameter.name].read(weights, parameter.name)))
    pretrained.adapter = adapter


def open_adapters(directories: list[str]) -> list[Adapter]:
    """Adapters, each with a name of its own.

    Raises:
        UserError: one cannot be read, or two have one name.
    """
    return list(named(directories).values())


def choose_adapter(directories: list[str], name: str | None) -> list[Adapter]:
    """The adapter called `name`, or the only one; none where there is none.

    Raises:
        UserError: one cannot be read, or there are several and `name` is none of them.
    """
    adapters = named(directories)
    if name is None and len(adapters) <= 1:
        return list(adapters.values())
    if name not in adapters:
        raise UserError(f"adapter={name or 'null'} is none of adapters=; give adapter= one of: {', '.join(adapters)}")
    return [adapters[name]]


def open_pretrained(
    load: str,
    tokenizer: TokenizerConfig,
    parallel: ParallelConfig,
    adapters: Sequence[Adapter] = (),
    *,
    verify: bool = True,
) -> OpenedModel:
    """Open and check the directory `load`; its weights stay unread.

    Args:
        load: as for `load_pretrained`.
        tokenizer: for a directory that has none.
        parallel: the layout.
        adapters: those that the model will be used with.
        verify: whether to hash the weights, and adapters' base; one process does it for a run.

    Raises:
        UserError: as `load_pretrained`.
    """
    source = load_source(load, verify=verify)
    own = source_tokenizer(source, tokenizer)
    check_vocabulary(own, source.model, f"load={load}")
    for adapter in adapters:
        check_fits(adapter, source.model, load)
    if verify:
        check_base(adapters, source.weights(), load)
    model = adapted_model(source.model, adapters, load)
    return OpenedModel(source, own, padded_for(model, parallel, f"load={load}"))


def padded_for(model: ModelConfig, parallel: ParallelConfig, origin: str) -> ModelConfig:
    """The model with as many rows of padding as its vocabulary needs to be shared out; they change no result.

    Raises:
        UserError: its heads or feed-forward layers cannot be shared out.
    """
    if parallel.vocab_parallel:
        model = replace(model, pad_vocab_multiple=math.lcm(model.pad_vocab_multiple, parallel.tensor))
    try:
        validate_layout(parallel, model)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return model


def source_tokenizer(source: Source, wanted: TokenizerConfig) -> Tokenizer:
    """The checkpoint's own tokenizer; the configured one where it has none, or adds tokens with tokenizer.extend.

    Raises:
        UserError: when there is neither, or when tokenizer.path names another one than the checkpoint's.
    """
    if source.tokenizer_dir is None:
        if wanted.extend:
            raise UserError(
                f"tokenizer.extend=true: load={source.path} holds no tokenizer to compare tokenizer.path={wanted.path} "
                "with; put the one that it was trained with into that directory"
            )
        if wanted.path is None:
            raise UserError(
                f"load={source.path} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt): "
                "give tokenizer.path=DIRECTORY"
            )
        return Tokenizer.load(wanted.path, wanted.eos_token)
    own = Tokenizer.load(source.tokenizer_dir)
    if wanted.path is not None and (wanted.extend or Path(wanted.path).expanduser().exists()):  # a hub may be far
        other = Tokenizer.load(wanted.path)
        if other.fingerprint != own.fingerprint:
            if wanted.extend and other.extends(own):
                return other
            fix = "drop tokenizer.path"
            if other.extends(own):
                fix += ", or train with the tokens that it adds by tokenizer.extend=true"
            elif wanted.extend:
                fix = f"tokenizer.extend=true takes one whose first {own.vocab_size} ids and end-of-text are the same"
            raise UserError(
                f"tokenizer.path={wanted.path} ({other.vocab_size} tokens) is not the tokenizer that "
                f"load={source.path} was trained with ({own.vocab_size} tokens): {fix}"
            )
    return own


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, origin: str) -> None:
    """Refuse a tokenizer whose ids the embedding has no rows for."""
    if model.vocab_size is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{origin}: the tokenizer has {tokenizer.vocab_size} tokens but the model's embedding only "
            f"model.vocab_size={model.vocab_size} rows: they do not belong together; use the tokenizer that the "
            f"checkpoint was trained with, or for a new model model.vocab_size=null (the tokenizer's size)"
        )
