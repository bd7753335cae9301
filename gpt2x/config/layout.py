"""Ranks, micro batches and stages of a parallel layout: arithmetic on the configuration (imports no mindspore).

Ranks count the tensor axis fastest, then data, then pipeline, as in Megatron-LM (Narayanan et al., arXiv:2104.04473,
section 3), so that the axis that communicates most lies within a node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpt2x.config.keys import check_values
from gpt2x.config.schema import ModelConfig, ParallelConfig, TrainerConfig
from gpt2x.errors import UserError

DEFAULT_BATCH = 4  # sequences per update, if the configuration states none


def world_size(parallel: ParallelConfig) -> int:
    """Return the number of processes of a layout, one per device."""
    return parallel.data * parallel.tensor * parallel.pipeline


def num_micro_batches(parallel: ParallelConfig, trainer: TrainerConfig) -> int:
    """Return the forward passes per update and replica, by `parallel.micro_batches` or `trainer.micro_batch_size`."""
    if parallel.micro_batches is not None:
        return parallel.micro_batches
    if trainer.micro_batch_size is None:
        return 1
    return trainer.batch // (parallel.data * trainer.micro_batch_size)


def micro_batch_size(parallel: ParallelConfig, trainer: TrainerConfig) -> int:
    """Return the sequences per forward pass and replica."""
    return trainer.batch // (parallel.data * num_micro_batches(parallel, trainer))


def bubble_fraction(pipeline: int, micro_batches: int) -> float:
    """Return the share of a pipelined update in which a stage waits.

    For P stages and M micro batches: (P - 1) / (M + P - 1) (arXiv:2104.04473, section 2.2).
    """
    return (pipeline - 1) / (micro_batches + pipeline - 1)


@dataclass(frozen=True)
class Coordinates:
    """The position of one process in a layout.

    Attributes:
        parallel: the layout.
        rank: from 0 to world_size - 1.
    """

    parallel: ParallelConfig
    rank: int

    @property
    def tensor(self) -> int:
        """The number among the processes that split the same layers."""
        return self.rank % self.parallel.tensor

    @property
    def data(self) -> int:
        """The number of the replica."""
        return self.rank // self.parallel.tensor % self.parallel.data

    @property
    def stage(self) -> int:
        """The number of the pipeline stage."""
        return self.rank // (self.parallel.tensor * self.parallel.data)

    @property
    def shard(self) -> int:
        """The number of the shard of optimizer states."""
        return self.data % self.parallel.shards

    @property
    def is_first_stage(self) -> bool:
        """Return whether the process has the embedding."""
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        """Return whether the process has the head."""
        return self.stage == self.parallel.pipeline - 1

    def rank_at(self, *, data: int | None = None, tensor: int | None = None, stage: int | None = None) -> int:
        """Return the rank of the process that differs from this one only in these coordinates."""
        data = self.data if data is None else data
        tensor = self.tensor if tensor is None else tensor
        stage = self.stage if stage is None else stage
        return (stage * self.parallel.data + data) * self.parallel.tensor + tensor

    def layers(self, num_layers: int) -> range:
        """Return the layers of the stage; see `stage_layers`."""
        return stage_layers(num_layers, self.parallel.pipeline, self.stage)


def stage_layers(num_layers: int, pipeline: int, stage: int) -> range:
    """Return the layers of a stage. If the stages do not divide the layers, the first stages have one more."""
    least, more = divmod(num_layers, pipeline)
    start = stage * least + min(stage, more)
    return range(start, start + least + (stage < more))


def zero_stages(parallel: ParallelConfig) -> tuple[int, ...]:
    """Return the values of `zero_stage` that a layout can have: pipeline stages reduce gradients once per update."""
    return (0, 1, 2, 3) if parallel.pipeline == 1 else (0, 1, 3)


def validate_parallel(parallel: ParallelConfig) -> None:
    """Check a layout by itself.

    Raises:
        UserError: with key, value and fix.
    """
    check_values(parallel, "parallel.")
    if parallel.data % parallel.shards:
        raise UserError(
            f"parallel.optimizer_shards={parallel.shards} does not divide parallel.data={parallel.data}; "
            f"use one of {divisors(parallel.data)}."
        )
    if parallel.zero_stage and parallel.shards == 1:
        raise UserError(
            f"parallel.zero_stage={parallel.zero_stage} splits over replicas, but parallel.data={parallel.data} and "
            f"parallel.optimizer_shards={parallel.optimizer_shards}; use parallel.zero_stage=0, or more replicas."
        )
    if parallel.zero_stage == 0 and parallel.shards > 1:
        raise UserError(
            f"parallel.zero_stage=0 splits nothing, but parallel.optimizer_shards={parallel.optimizer_shards}; use "
            "parallel.optimizer_shards=null, or parallel.zero_stage=1, 2 or 3."
        )
    if parallel.zero_stage is not None and parallel.zero_stage not in zero_stages(parallel):
        raise UserError(
            f"parallel.zero_stage={parallel.zero_stage} sums gradients over replicas in each micro batch, which "
            f"parallel.pipeline={parallel.pipeline} stages do not; use parallel.zero_stage=1 or 3."
        )
    if parallel.sequence_parallel and parallel.tensor == 1:
        raise UserError(
            "parallel.sequence_parallel=true splits tokens over the tensor axis, but parallel.tensor=1; "
            "use parallel.sequence_parallel=false or a larger parallel.tensor."
        )


def validate_layout(parallel: ParallelConfig, model: ModelConfig) -> None:
    """Check that a layout divides a model.

    Raises:
        UserError: with key, value and fix.
    """
    degree = parallel.tensor
    ffn = model.ffn_size or 4 * model.hidden_size
    for key, value in (("num_heads", model.num_heads), ("ffn_size", ffn)):
        if value % degree:
            raise UserError(
                f"model.{key}={value} is not divisible by parallel.tensor={degree}; use one of {divisors(value)}."
            )
    if parallel.pipeline > model.num_layers:
        raise UserError(
            f"parallel.pipeline={parallel.pipeline} stages exceed model.num_layers={model.num_layers}; "
            f"use parallel.pipeline={model.num_layers} or fewer."
        )


def validate_batch(parallel: ParallelConfig, trainer: TrainerConfig) -> None:
    """Check that replicas and micro batches divide a global batch.

    Raises:
        UserError: with key, value and fix.
    """
    batch, micro, size = trainer.global_batch_size, parallel.micro_batches, trainer.micro_batch_size
    if batch is None:  # it will be a multiple of what the layout needs
        batch = batch_multiple(parallel, trainer)
    if batch % parallel.data:
        raise UserError(
            f"trainer.global_batch_size={batch} is not a multiple of parallel.data={parallel.data}; "
            f"use trainer.global_batch_size={next_multiple(batch, parallel.data)}."
        )
    if micro is not None and batch % (parallel.data * micro):
        raise UserError(
            f"trainer.global_batch_size={batch} is not a multiple of parallel.data={parallel.data} x "
            f"parallel.micro_batches={micro}; use trainer.global_batch_size="
            f"{next_multiple(batch, parallel.data * micro)}, or parallel.micro_batches of "
            f"{divisors(batch // parallel.data)}."
        )
    if size is not None and batch % (parallel.data * size):
        raise UserError(
            f"trainer.global_batch_size={batch} is not a multiple of trainer.micro_batch_size={size}"
            + (f" x parallel.data={parallel.data}" if parallel.data > 1 else "")
            + f"; use trainer.micro_batch_size of {divisors(batch // parallel.data)}."
        )
    if micro is not None and size is not None and micro * size * parallel.data != batch:
        raise UserError(
            f"parallel.micro_batches={micro} and trainer.micro_batch_size={size} do not fit trainer.global_batch_size="
            f"{batch} on parallel.data={parallel.data}; set one of them to null."
        )
    if parallel.sequence_parallel and trainer.seq_len % parallel.tensor:
        raise UserError(
            f"trainer.seq_len={trainer.seq_len} is not divisible by parallel.tensor={parallel.tensor}, which "
            f"parallel.sequence_parallel=true needs; use trainer.seq_len="
            f"{trainer.seq_len // parallel.tensor * parallel.tensor}."
        )


def batch_multiple(parallel: ParallelConfig, trainer: TrainerConfig) -> int:
    """Return the sequences that a global batch is a multiple of."""
    return parallel.data * (parallel.micro_batches or 1) * (trainer.micro_batch_size or 1)


def with_batch(trainer: TrainerConfig, parallel: ParallelConfig, num_devices: int | None = None) -> TrainerConfig:
    """Return the trainer with a global batch size: the configured one, else the default, rounded up.

    Args:
        trainer: of a validated configuration.
        parallel: the layout; its replicas and micro batches divide the result.
        num_devices: of a search for layouts: they divide the result too.
    """
    if trainer.global_batch_size is not None:
        return trainer
    multiple = math.lcm(batch_multiple(parallel, trainer), num_devices or 1)
    if parallel.micro_batches is not None and trainer.micro_batch_size is not None:
        return replace(trainer, global_batch_size=multiple)
    return replace(trainer, global_batch_size=next_multiple(DEFAULT_BATCH, multiple))


def divisors(value: int) -> str:
    """Return the divisors of `value` up to 1024 as text."""
    return ", ".join(str(n) for n in range(1, value + 1) if value % n == 0 and n <= 1024)


def next_multiple(value: int, of: int) -> int:
    """Return the smallest multiple of `of` that is not below `value`."""
    return -(-value // of) * of


def padded_for(model: ModelConfig, parallel: ParallelConfig) -> ModelConfig:
    """Return the model with the padding that lets the tensor axis split its vocabulary. Checkpoints do not hold it."""
    if not parallel.vocab_parallel:
        return model
    return replace(model, pad_vocab_multiple=math.lcm(model.pad_vocab_multiple, parallel.tensor))


def fitted_to(model: ModelConfig, parallel: ParallelConfig, origin: str) -> ModelConfig:
    """Return the model with its vocabulary padded for vocabulary parallelism. Padding rows change no result.

    Raises:
        UserError: the layout does not divide the heads or feed-forward layers.
    """
    model = padded_for(model, parallel)
    try:
        validate_layout(parallel, model)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    return model
