"""Stage 3: the model with its vocabulary and its task's head."""

from __future__ import annotations

from dataclasses import replace

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import validate_layout
from gpt2x.config.patterns import trained_tensors
from gpt2x.convert.special_ids import SpecialIds, special_ids_from_plain
from gpt2x.data.prepare import PreparedData
from gpt2x.errors import require
from gpt2x.model import stats
from gpt2x.parallel.placement import VOCABULARY
from gpt2x.pretrained import check_vocabulary, tokenizer_ids
from gpt2x.tasks.base import Task
from gpt2x.train.decision.source import RunSource


def decide_model(config: TrainConfig, task: Task, source: RunSource, data: PreparedData) -> ModelConfig:
    """Return the model with everything known: vocabulary, labels, and what the loaded weights decide.

    Raises:
        UserError: the tokenizer, the task or the layout does not fit the model.
    """
    model = complete_model(config, task, source, data)
    validate_layout(config.parallel, model)
    if source.weights and not source.resumption:
        check_added_rows(config.trainer.frozen, model, source.weights.model)
    return model


def complete_model(config: TrainConfig, task: Task, source: RunSource, data: PreparedData) -> ModelConfig:
    """Fill in what the configuration leaves open."""
    if source.resumption:  # the padding depends on the layout, and is not saved
        return replace(source.resumption.saved.model, pad_vocab_multiple=config.model.pad_vocab_multiple)
    model, tokenizer = config.model, data.tokenizer
    loaded = source.weights.model if source.weights else None
    if loaded:
        vocab_size = loaded.vocab_size
        if config.tokenizer.extend:
            vocab_size = max(vocab_size or 0, tokenizer.vocab_size)
        model = replace(model, vocab_size=vocab_size)
    if model.vocab_size is None:
        model = replace(model, vocab_size=tokenizer.vocab_size)
    check_vocabulary(tokenizer, model, f"tokenizer={config.tokenizer.name}")
    return task.fit_model(model, data, loaded)


def decide_special_ids(source: RunSource, data: PreparedData, model: ModelConfig) -> SpecialIds:
    """Return BOS, EOS and PAD as the checkpoints of the run state them.

    They are those of the loaded weights, aligned with the tokenizer that made the rows; a new model has the
    tokenizer's.
    """
    tokenizer, trained = data.tokenizer, tokenizer_ids(data.tokenizer, model)
    if source.resumption:
        return special_ids_from_plain(source.resumption.saved.special_ids) or trained
    stated = source.weights.special_ids if source.weights else None
    if stated is None:
        return trained
    pad = tokenizer.pad_id if tokenizer.pad_id is not None or not model.is_classifier else tokenizer.eos_id
    return stated.aligned(tokenizer.eos_id, tokenizer.bos_id, pad)


def check_added_rows(frozen: list[str], model: ModelConfig, loaded: ModelConfig) -> None:
    """Reject frozen tables of tokens to which rows are added: the new rows would stay as they are drawn.

    Raises:
        UserError: naming trainer.frozen and the table.
    """
    names = stats.tensor_shapes(model)
    tables = set(VOCABULARY).intersection(names).difference(trained_tensors(frozen, names))
    require(
        model.vocab_size == loaded.vocab_size or not tables,
        f"trainer.frozen=[{','.join(frozen)}] freezes {', '.join(sorted(tables))}, to which tokenizer.extend=true adds "
        "rows: they would never be trained. Leave it out of trainer.frozen.",
    )
