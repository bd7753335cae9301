"""Stage 2: the rows that a run trains on, and how many steps that makes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2x.config import TrainConfig
from gpt2x.config.rules import validate_profile, validate_warmup
from gpt2x.data.prepare import PreparedData
from gpt2x.data.sampling import num_batches
from gpt2x.errors import NothingLeftError, UserError
from gpt2x.tasks.base import Task
from gpt2x.train.decision.source import RunSource
from gpt2x.train.resume import Resumption
from gpt2x.train.samples import plan_samples


@dataclass(frozen=True)
class Steps:
    """The length of a run.

    Attributes:
        total: optimizer updates.
        per_epoch: updates in one pass over the training rows.
    """

    total: int
    per_epoch: int


def decide_data(config: TrainConfig, task: Task, source: RunSource) -> tuple[PreparedData, Steps]:
    """Prepare the task's rows with the run's tokenizer, or find them in the cache, and count the steps.

    Raises:
        UserError: wrong input, rows that differ from those of the resumed run, or a run without a step.
    """
    if source.tokenizer:
        max_seq_len = (source.loaded_model or config.model).max_seq_len
        plan_samples(config, None, source.tokenizer, max_seq_len)  # rejects too long a prompt before the data are read
    saved = source.resumption.saved.model if source.resumption else config.model
    rows = replace(config, model=replace(config.model, labels=saved.labels))  # a resumed run keeps the order of classes
    data = limited(config, task.prepare(rows, source.tokenizer))
    check_metrics(config, data)
    check_same_data(config, data, source.resumption)
    steps = count_steps(config, data)
    check_end(config, steps, source.resumption)
    return data, steps


def check_metrics(config: TrainConfig, data: PreparedData) -> None:
    """Reject bits per byte as the metric to improve if the tokenizer does not have exact bytes.

    Raises:
        UserError: trainer.best_metric or sweep.objective is val/bits_per_byte, which is not computed.
    """
    metrics = {"trainer.best_metric": config.trainer.best_metric, "sweep.objective": config.sweep.objective}
    for key, metric in metrics.items():
        if metric == "val/bits_per_byte" and data.tokenizer.loss:
            raise UserError(
                f"{key}={metric} cannot be computed: {data.tokenizer.note_of_loss}. Use {key}=val/loss, or a "
                "byte-level tokenizer, such as tokenizer=bpe."
            )


def limited(config: TrainConfig, data: PreparedData) -> PreparedData:
    """Return the data with trainer.max_train_rows of their training rows at most."""
    limit = config.trainer.max_train_rows
    if limit is None or data.train is None:
        return data
    return replace(data, train=data.train.first(limit))


def count_steps(config: TrainConfig, data: PreparedData) -> Steps:
    """Return the number of steps of the run and of an epoch.

    Raises:
        UserError: early stopping without validation rows, fewer training rows than a batch, or too long a warmup.
    """
    trainer = config.trainer
    assert data.train is not None
    if trainer.early_stopping_patience is not None and data.val is None:
        raise UserError(
            f"trainer.early_stopping_patience={trainer.early_stopping_patience}: dataset={config.dataset.name} has no "
            "validation part. Give dataset.val_path, or trainer.early_stopping_patience=null."
        )
    per_epoch = num_batches(data.train, trainer.batch, drop_last=True)
    if per_epoch == 0:
        limit = f"trainer.max_train_rows={trainer.max_train_rows}: " if trainer.max_train_rows else ""
        raise UserError(
            f"{limit}trainer.global_batch_size={trainer.batch} exceeds the {data.train.num_blocks} training "
            f"blocks of {trainer.seq_len} tokens. Use a smaller batch, a shorter trainer.seq_len or more text."
        )
    total = trainer.max_steps or per_epoch * (trainer.max_epochs or 1)
    validate_warmup(config.schedule, total)
    return Steps(total, per_epoch)


def check_same_data(config: TrainConfig, data: PreparedData, resumption: Resumption | None) -> None:
    """Reject rows that differ from those in which the checkpoint's position counts, if no key of the data changed.

    Raises:
        UserError: naming both fingerprints.
    """
    if not resumption or resumption.differences:
        return
    stored = resumption.saved.loop_state.get("data_sha256")
    if stored and stored != data.fingerprint:  # older versions stored none; the start panel says so
        raise UserError(
            f"resume={config.resume}: dataset={config.dataset.name} gives different blocks than at "
            f"{resumption.saved.path} (sha256 {stored[:12]} -> {data.fingerprint[:12]}), though the "
            "configuration is the same: its files have changed. Bring them back, or start a new run from the "
            f"weights with load={resumption.saved.path}."
        )


def check_end(config: TrainConfig, steps: Steps, resumption: Resumption | None) -> None:
    """Reject a resumed run that has no step left, and a profile of steps that this start does not make.

    Raises:
        UserError: naming the key to change.
    """
    done = resumption.saved.loop_state["step"] if resumption else 0
    validate_profile(config.trainer, done, steps.total)
    if not resumption:
        return
    stop = min(steps.total, config.trainer.stop_after_steps or steps.total)
    is_done = done >= stop and not resumption.saved.loop_state.get("open_hook")
    if is_done and config.resume == "auto":
        raise NothingLeftError(
            f"resume=auto: nothing is left to do, since {resumption.saved.path.parent.parent} is at step {done} and "
            f"ends at step {stop}"
        )
    if is_done:
        longer = "trainer.stop_after_steps" if stop < steps.total else "trainer.max_steps or trainer.max_epochs"
        raise NothingLeftError(
            f"resume={config.resume}: nothing to resume, since {resumption.saved.path} is at step {done} and the "
            f"run ends at step {stop}. Give resume={resumption.saved.path} and raise {longer}."
        )
