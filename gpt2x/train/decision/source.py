"""Stage 1: where a run starts from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from gpt2x.checkpoint.files import require_writable
from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import Coordinates, validate_layout
from gpt2x.config.options import known_models
from gpt2x.config.patterns import scaling, trained_tensors
from gpt2x.convert import WeightsSource, check_model_matches, load_source
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError, require
from gpt2x.lora.adapter import Adapter, check_base, check_fits
from gpt2x.lora.open import open_adapter
from gpt2x.lora.shapes import factor_shapes
from gpt2x.model import stats
from gpt2x.parallel.placement import holds
from gpt2x.pretrained import limit_to_rows, source_tokenizer
from gpt2x.runtime.console import console
from gpt2x.runtime.role import Role
from gpt2x.tasks.base import Task
from gpt2x.train.resume import Resumption, find_resumption


@dataclass(frozen=True)
class RunSource:
    """Where a run starts from.

    Attributes:
        weights: what `load=` names; of a resumed run the frozen weights of `lora=`; None for random weights.
        resumption: the checkpoint that the run continues, if it does.
        tokenizer: the one stored with the weights or the resumed checkpoint; None if there is neither.
        adapter: what `adapters=` names, from which training continues.
    """

    weights: WeightsSource | None
    resumption: Resumption | None
    tokenizer: Tokenizer | None
    adapter: Adapter | None

    @property
    def loaded_model(self) -> ModelConfig | None:
        """The model that the weights or the resumed checkpoint state; None for a new model."""
        if self.resumption:
            return self.resumption.saved.model
        return self.weights.model if self.weights else None


def require_outputs(config: TrainConfig) -> None:
    """Check that the directories of runs and of copies can be written, and are two.

    Raises:
        UserError: one cannot, or they are one.
    """
    outputs, copy = Path(config.paths.outputs).expanduser(), config.trainer.checkpoint_copy
    require_writable(outputs)
    if copy is not None:
        require_writable(Path(copy).expanduser(), "trainer.checkpoint_copy")
        if os.path.samefile(Path(copy).expanduser(), outputs):
            raise UserError(f"trainer.checkpoint_copy={copy} is paths.outputs. Give a directory on a different disk.")


def decide_source(config: TrainConfig, task: Task, run_dir: Path, role: Role) -> RunSource:
    """Open what `load=`, `resume=` and `adapters=` name, and compare it with the configuration.

    Raises:
        UserError: for anything that the configuration and the headers of these files tell; then for damaged files.
    """
    check_finetuning(config)
    require_outputs(config)
    damaged: dict[Path, str] = {}
    while True:
        source = open_source(config, task, run_dir, damaged)
        if not role.decides:
            return source
        resumption = source.resumption
        try:
            if resumption:
                resumption.saved.verify()
            break
        except UserError as error:
            if resumption is None or not resumption.is_newest:
                raise
            damaged[resumption.saved.path] = str(error)
    for fault in damaged.values():
        console.warn(f"resume={config.resume} leaves out a damaged checkpoint: {fault}")
    verify(config, source)
    return source


def open_source(config: TrainConfig, task: Task, run_dir: Path, damaged: dict[Path, str]) -> RunSource:
    """Open what a run starts from and compare it with the configuration; no tensors are read.

    Args:
        config: of the run.
        task: of the run.
        run_dir: where it writes.
        damaged: checkpoints of a resumed run that are known to be damaged, and how; more are added.

    Raises:
        UserError: for anything that the configuration and the headers of these files tell.
    """
    resumption = find_resumption(config, run_dir, damaged) if config.resume else None
    weights = open_weights(config, resumption)
    source = RunSource(weights, resumption, checkpoint_tokenizer(config, weights, resumption), None)
    if weights and not resumption:
        check_loaded_model(config, weights)
    if source.loaded_model:
        task.fit_model(source.loaded_model, None, source.loaded_model)  # rejects a head that the task cannot train
    check_frozen(config, task, source.loaded_model)
    validate_layout(config.parallel, replace(config.model, vocab_size=None))
    if config.adapters and not resumption:
        source = replace(source, adapter=open_matching_adapter(config, weights))
    return source


def open_weights(config: TrainConfig, resumption: Resumption | None) -> WeightsSource | None:
    """Open what `load=` names; of a resumed run the frozen weights of `lora=`, which its checkpoints refer to."""
    if resumption is None:
        return load_source(config.load, verify=False) if config.load else None
    if config.lora.rank is None:
        return None
    return load_source(config.load or resumption.saved.loop_state["base_path"], verify=False)


def checkpoint_tokenizer(
    config: TrainConfig, weights: WeightsSource | None, resumption: Resumption | None
) -> Tokenizer | None:
    """Return the tokenizer stored with the weights or the resumed checkpoint; None for a new model."""
    if resumption:
        assert resumption.saved.tokenizer_dir is not None
        tokenizer = Tokenizer.load(resumption.saved.tokenizer_dir)
        limit_to_rows(tokenizer, resumption.saved.model, f"resume={config.resume}")
        return tokenizer
    if weights is None:
        return None
    tokenizer = source_tokenizer(weights, config.tokenizer)
    if not config.tokenizer.extend:
        limit_to_rows(tokenizer, weights.model, f"load={config.load}")
    return tokenizer


def verify(config: TrainConfig, source: RunSource) -> None:
    """Hash the files of what a run loads, once for all its processes.

    Raises:
        UserError: a file is damaged, or the adapter was trained beside other weights.
    """
    if source.weights:
        source.weights.verify()
    if source.adapter:
        assert source.weights is not None
        check_base([source.adapter], source.weights.weights(), str(config.load))


# ---- checks


def check_finetuning(config: TrainConfig) -> None:
    """Reject `trainer.frozen` and `tokenizer.extend` if there is nothing to freeze or to extend.

    Raises:
        UserError: naming the key; nothing has been read.
    """
    lora, frozen = config.lora, f"trainer.frozen=[{','.join(config.trainer.frozen)}]"
    if config.trainer.frozen:
        require(
            lora.rank is None,
            f"{frozen}: lora={lora.name} freezes the whole model already and trains only adapters. Drop one of the "
            "two, and choose the adapted modules by lora.targets.",
        )
        require(
            config.load is not None or config.resume is not None,
            f"{frozen} keeps weights as they are loaded, and load=null leaves them random. Give load=DIR (a gpt2x "
            "checkpoint or a Hugging Face directory).",
        )
    if config.tokenizer.extend and config.resume is None:
        require(
            config.load is not None,
            "tokenizer.extend=true adds rows to the embedding of load=DIR, but load=null. A new model has the "
            "tokenizer's size with model.vocab_size=null; drop tokenizer.extend.",
        )
        require(
            config.tokenizer.path is not None,
            "tokenizer.extend=true adds the tokens of tokenizer.path=DIR to the checkpoint's, but tokenizer.path=null. "
            "Give tokenizer.path=DIR.",
        )
        require(
            lora.rank is None,
            f"tokenizer.extend=true adds rows to the embedding, which lora={lora.name} freezes and its checkpoints do "
            "not hold. Add them first, in a run without lora=.",
        )


def check_loaded_model(config: TrainConfig, weights: WeightsSource) -> None:
    """Check that the configured model, which was taken from the loaded weights, is still theirs; reads no values.

    Raises:
        UserError: says which keys differ and what to type.
    """
    model = replace(config.model, vocab_size=None) if config.tokenizer.extend else config.model
    check_model_matches(model, weights.model, str(config.load), known_models())


def check_frozen(config: TrainConfig, task: Task, loaded: ModelConfig | None) -> None:
    """Reject `trainer.frozen` if it freezes nothing, the whole model, or all of a pipeline stage.

    Raises:
        UserError: naming trainer.frozen.
    """
    frozen, parallel = config.trainer.frozen, config.parallel
    if not frozen or loaded is None:
        return
    model = task.fit_model(loaded, None, loaded)
    trained = trained_tensors(frozen, stats.tensor_shapes(model))
    for stage in range(min(parallel.pipeline, model.num_layers)):
        coordinates = Coordinates(parallel, stage * parallel.data * parallel.tensor)
        layers = coordinates.layers(model.num_layers)
        require(
            any(holds(name, model, coordinates) for name in trained),
            f"trainer.frozen=[{','.join(frozen)}] freezes everything in stage {stage} of parallel.pipeline="
            f"{parallel.pipeline}, layers {layers.start} to {layers.stop - 1}: it would have nothing to train. Use a "
            "layout with parallel.pipeline=1, or leave a tensor of every stage to be trained.",
        )


def open_matching_adapter(config: TrainConfig, weights: WeightsSource | None) -> Adapter:
    """Open the adapter of `adapters=` and compare its shapes with what `lora=` trains.

    Raises:
        UserError: it does not fit the model, or its rank, scale or targets differ from the configured ones.
    """
    assert weights is not None
    adapter = open_adapter(config.adapters[0])
    check_fits(adapter, weights, str(config.load))
    shapes = {name: values.shape for name, values in adapter.factors().items()}
    scales = {product.scale for product in adapter.products.values()}
    is_same_scale = partial(math.isclose, scaling(config.lora))
    if shapes != factor_shapes(config.lora, weights.model) or not all(map(is_same_scale, scales)):
        modules = sorted({module.split(".", 2)[2] for module in adapter.products})
        ranks = sorted({product.rank for product in adapter.products.values()})
        raise UserError(
            f"adapters=[{config.adapters[0]}] is not what lora= would train: it has rank {ranks} at scale "
            f"{sorted(scales)} on {', '.join(modules)}. Give its lora.rank, lora.alpha and lora.targets."
        )
    return adapter
