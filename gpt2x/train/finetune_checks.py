"""What fine-tuning does to loaded weights: some tensors stay frozen, tables of tokens grow with the tokenizer."""

from __future__ import annotations

from dataclasses import replace

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import Coordinates
from gpt2x.config.patterns import trained_tensors
from gpt2x.errors import require
from gpt2x.model import stats
from gpt2x.parallel.placement import VOCABULARY, holds


def check_changes(config: TrainConfig) -> None:
    """Refuse trainer.frozen and tokenizer.extend where there is nothing to freeze or to extend.

    Raises:
        UserError: naming the key; nothing has been read.
    """
    lora, frozen = config.lora, f"trainer.frozen=[{','.join(config.trainer.frozen)}]"
    if config.trainer.frozen:
        require(
            lora.rank is None,
            f"{frozen}: lora={lora.name} freezes the whole model already and trains adapters alone; drop one of the "
            "two, and choose the adapted modules by lora.targets",
        )
        require(
            config.load is not None or config.resume is not None,
            f"{frozen} keeps weights as they are loaded, and load=null leaves these random: give load=DIR (a gpt2x "
            "checkpoint or a Hugging Face directory)",
        )
    if config.tokenizer.extend and config.resume is None:
        require(
            config.load is not None,
            "tokenizer.extend=true adds rows to the embedding of load=DIR, but load=null: a new model has the "
            "tokenizer's size with model.vocab_size=null; drop tokenizer.extend",
        )
        require(
            config.tokenizer.path is not None,
            "tokenizer.extend=true adds the tokens of tokenizer.path=DIR to the checkpoint's, but tokenizer.path=null",
        )
        require(
            lora.rank is None,
            f"tokenizer.extend=true adds rows to the embedding, which lora={lora.name} freezes and its checkpoints do "
            "not hold; add them first, in a run without lora=",
        )


def check_frozen(config: TrainConfig, loaded: ModelConfig | None) -> None:
    """Refuse to freeze what the model has not, all of it, or all of a pipeline stage; before data are prepared.

    Raises:
        UserError: naming trainer.frozen.
    """
    frozen, parallel = config.trainer.frozen, config.parallel
    if not frozen or loaded is None:
        return
    labels = loaded.labels or ["any"] if config.task.objective == "classification" else None
    model = replace(loaded, labels=labels)
    trained = trained_tensors(frozen, stats.tensor_shapes(model))
    for stage in range(min(parallel.pipeline, model.num_layers)):
        coordinates = Coordinates(parallel, stage * parallel.data * parallel.tensor)
        layers = coordinates.layers(model.num_layers)
        require(
            any(holds(name, model, coordinates) for name in trained),
            f"trainer.frozen=[{','.join(frozen)}] freezes all that stage {stage} of parallel.pipeline="
            f"{parallel.pipeline} has, layers {layers.start} to {layers.stop - 1}: it would have nothing to train; use "
            "a layout with parallel.pipeline=1, or leave a tensor of every stage to be trained",
        )


def check_added_rows(frozen: list[str], model: ModelConfig, loaded: ModelConfig) -> None:
    """Refuse to freeze the rows of added tokens, which would stay alike.

    Raises:
        UserError: naming trainer.frozen and the table.
    """
    names = stats.tensor_shapes(model)
    tables = set(VOCABULARY).intersection(names).difference(trained_tensors(frozen, names))
    require(
        model.vocab_size == loaded.vocab_size or not tables,
        f"trainer.frozen=[{','.join(frozen)}] freezes {', '.join(sorted(tables))}, to which tokenizer.extend=true adds "
        "rows: they would never be trained; leave it out of trainer.frozen",
    )
