"""Memory and speed of a layout on every kind of rank, before anything is built (no mindspore).

Memory is `gpt2x.planner.memory`. Time is a roofline: matrix products run at a calibrated fraction of the device's peak,
other work is limited by memory bandwidth, communication by link bandwidth. Only the gathers of full sharding overlap
with computation. docs/planning.md has the formulas, the calibration and the assumptions.

Legend: b sequences per micro batch, T tokens per sequence, D hidden size, F feed-forward size, M micro batches,
P stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig, TrainerConfig
from gpt2x.config.layout import (
    Coordinates,
    micro_batch_size,
    num_micro_batches,
    padded_for,
    validate_layout,
    world_size,
)
from gpt2x.optim.registry import state_names
from gpt2x.planner.communication import Collective, Communication, repeated
from gpt2x.planner.limits import FULL, highest_stage
from gpt2x.planner.memory import Memory, copies_checkpoint, step_memory, usable_bytes
from gpt2x.planner.values import ModelValues, TrainedValues, model_values, trained_values
from gpt2x.planner.work import Work
from gpt2x.trainable import Trainable, trainable_of

ASSUMED_VOCABULARY = 50257  # GPT-2's, if neither the model nor the tokenizer states a size


@dataclass(frozen=True)
class RankPlan:
    """One kind of rank. All ranks of a stage are the same, and so are all stages between the first and the last.

    Attributes:
        coordinates: of the first rank of this kind.
        stages: numbers of the stages of this kind.
        layers: blocks per stage.
        values: the number of values that the rank holds of the model.
        trained: the number of values that it updates.
        memory: bytes.
        flops: floating-point operations of an update, recomputation included.
        collectives: communication of an update.
        compute_s: seconds of one micro batch without communication; None if not known.
        micro_batch_s: seconds of one micro batch with communication; None if not known.
        update_s: seconds after the last micro batch: gradient reduction, optimizer, all-gather of parameters.
    """

    coordinates: Coordinates
    stages: tuple[int, ...]
    layers: int
    values: ModelValues
    trained: TrainedValues
    memory: Memory
    flops: float
    collectives: tuple[Collective, ...]
    compute_s: float | None
    micro_batch_s: float | None
    update_s: float | None

    @property
    def name(self) -> str:
        """The kind, for people."""
        stage = self.coordinates.stage
        if self.coordinates.parallel.pipeline == 1:
            return "all ranks"
        if self.coordinates.is_first_stage or self.coordinates.is_last_stage:
            return f"{'first' if stage == 0 else 'last'} stage"
        numbers = f"{self.stages[0]}" if len(self.stages) == 1 else f"{self.stages[0]}-{self.stages[-1]}"
        return f"stage {numbers}"


@dataclass(frozen=True)
class Speed:
    """The predicted speed.

    Attributes:
        update_s: seconds of an update.
        tokens_per_s: tokens per second per device.
        mfu: model FLOPs per second as a fraction of the device's peak, in [0, 1].
        waiting: the fraction of an update in which the busiest stage waits for others.
        seconds_by_part: how the busiest stage spends the update.
    """

    update_s: float
    tokens_per_s: float
    mfu: float
    waiting: float
    seconds_by_part: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """The prediction for one layout.

    Attributes:
        trainable: what is trained, and of which model.
        parallel: the layout.
        hardware: the device.
        trainer: batch and sequence length.
        num_states: fp32 states that the optimizer keeps per value.
        ranks: one entry per kind of rank, in the order of stages.
        usable: bytes of a device that a run can fill.
        speed: None if the hardware's figures are not known.
        highest_stage: the highest `zero_stage` that the run can train with, whatever its layout.
    """

    trainable: Trainable
    parallel: ParallelConfig
    hardware: HardwareConfig
    trainer: TrainerConfig
    num_states: int
    ranks: tuple[RankPlan, ...]
    usable: float
    speed: Speed | None
    highest_stage: int = FULL

    @property
    def model(self) -> ModelConfig:
        """The model, with a vocabulary."""
        return self.trainable.model

    @property
    def fullest(self) -> RankPlan:
        """The kind of rank that takes the most memory."""
        return max(self.ranks, key=lambda rank: rank.memory.total)

    @property
    def busiest(self) -> RankPlan:
        """The kind of rank whose micro batches take the longest, if times are known."""
        return busiest_of(self.ranks)

    @property
    def fits(self) -> bool:
        """Whether every rank fits its device."""
        return self.fullest.memory.total <= self.usable

    @property
    def micro_batches(self) -> int:
        """Forward passes per update."""
        return num_micro_batches(self.parallel, self.trainer)

    @property
    def micro_batch_size(self) -> int:
        """Sequences per forward pass."""
        return micro_batch_size(self.parallel, self.trainer)


def plan_run(config: TrainConfig) -> Plan:
    """Plan the run that a validated configuration describes.

    Raises:
        UserError: the layout does not divide the assumed vocabulary.
    """
    model = padded_for(with_vocabulary(config), config.parallel)
    validate_layout(config.parallel, model)
    trainable = trainable_of(config, model)
    num_states = len(state_names(config.optimizer.kind))
    return plan_layout(
        trainable, config.parallel, config.hardware, config.trainer, num_states, config.launch.num_nodes,
        highest_stage(config, trainable)[0],
    )  # fmt: skip


def with_vocabulary(config: TrainConfig) -> ModelConfig:
    """Return the model with a vocabulary: the configured one, else the tokenizer's, else GPT-2's; no data is read."""
    assumed = config.model.vocab_size or config.tokenizer.vocab_size or ASSUMED_VOCABULARY
    return replace(config.model, vocab_size=assumed)


def plan_layout(
    trainable: Trainable,
    parallel: ParallelConfig,
    hardware: HardwareConfig,
    trainer: TrainerConfig,
    num_states: int,
    num_nodes: int = 1,
    highest_stage: int = FULL,
) -> Plan:
    """Plan a layout.

    Args:
        trainable: what is trained, of a model with its vocabulary.
        parallel: a layout that divides model and batch.
        hardware: the device.
        trainer: batch and sequence length.
        num_states: fp32 states that the optimizer keeps per value.
        num_nodes: number of machines; the processes on one machine share the memory of its CPU.
        highest_stage: as in `Plan`.
    """
    model, estimate = trainable.model, LayoutEstimate(trainable, parallel, hardware, trainer, num_states)
    kinds: dict[tuple[bool, bool, int], list[Coordinates]] = {}
    for stage in range(parallel.pipeline):
        coordinates = Coordinates(parallel, stage * parallel.data * parallel.tensor)
        kind = (coordinates.is_first_stage, coordinates.is_last_stage, len(coordinates.layers(model.num_layers)))
        kinds.setdefault(kind, []).append(coordinates)
    ranks = tuple(estimate.rank(stages) for stages in kinds.values())
    usable = usable_bytes(hardware, max(1, world_size(parallel) // num_nodes))
    return Plan(trainable, parallel, hardware, trainer, num_states, ranks, usable, estimate.speed(ranks), highest_stage)


class LayoutEstimate:
    """Work, memory and time of one layout.

    Args: as in `plan_layout`.
    """

    def __init__(
        self,
        trainable: Trainable,
        parallel: ParallelConfig,
        hardware: HardwareConfig,
        trainer: TrainerConfig,
        num_states: int,
    ):
        self.num_states, self.trainable = num_states, trainable
        self.parallel, self.hardware, self.trainer = parallel, hardware, trainer
        self.work = Work(trainable, parallel, hardware, trainer)
        self.micro_batches = self.work.micro_batches
        self.communication = Communication(trainable.model, parallel, hardware, self.work.tokens)

    def gathers(
        self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues, compute_s: float | None
    ) -> list[Collective]:
        """Return the gathers of one micro batch under full sharding: of each block forward, and again backward.

        A graph gathers the next block while it computes one: a forward pass, or a forward pass and the gradients. Only
        what takes longer than that costs time.
        """
        layers = len(coordinates.layers(self.trainable.model.num_layers))
        adapters = trained.in_blocks / layers if self.trainable.is_adapter else 0
        gather = self.communication.block_gather(coordinates, values, adapters)
        if gather is None:
            return []
        head, total = self.work.head_flops(values, trained), self.work.flops(coordinates, values, trained)
        ahead = self.parallel.num_slots(self.hardware.is_cpu) > 1
        block_s = 0.0 if compute_s is None or not ahead else compute_s * (1 - head / total) / layers
        passes = 2 + 1 + (trained.in_blocks > adapters * layers)  # forward twice, gradients of inputs and of weights
        forward, backward = gather.behind(block_s / passes), gather.behind(block_s * (passes - 1) / passes)
        seconds = total_seconds(forward.seconds, backward.seconds)
        both = replace(gather, sent=2 * gather.sent, seconds=seconds, hidden_s=forward.hidden_s + backward.hidden_s)
        return [repeated(both, layers)]

    # ---- ranks and time

    def rank(self, stages: list[Coordinates]) -> RankPlan:
        """Return the plan of one kind of rank; `stages` are the coordinates of one rank in each of its stages."""
        coordinates, model, hardware = stages[0], self.trainable.model, self.hardware
        values = model_values(model, coordinates)
        trained = trained_values(self.trainable, coordinates, values)
        per_update = self.communication.gradient_reduction(coordinates, trained)
        flops = self.work.flops(coordinates, values, trained)
        compute_s = self.work.compute_s(coordinates, values, trained)
        per_micro_batch = [
            *self.communication.tensor_axis(coordinates),
            *self.communication.pipeline_axis(coordinates),
            *self.gathers(coordinates, values, trained, compute_s),
            *self.communication.micro_batch_reduction(coordinates, trained),
        ]
        micro_batch_s = update_s = None
        if compute_s is not None and hardware.memory_gb_per_s:
            micro_batch_s = total_seconds(compute_s, *(part.seconds for part in per_micro_batch))
            optimizer_s = self.work.update_s(self.num_states, trained)
            update_s = total_seconds(optimizer_s, *(part.seconds for part in per_update))
        return RankPlan(
            coordinates=coordinates,
            stages=tuple(each.stage for each in stages),
            layers=len(coordinates.layers(model.num_layers)),
            values=values,
            trained=trained,
            memory=self.memory(coordinates),
            flops=flops * self.micro_batches,
            collectives=tuple([repeated(part, self.micro_batches) for part in per_micro_batch] + per_update),
            compute_s=compute_s,
            micro_batch_s=micro_batch_s,
            update_s=update_s,
        )

    def memory(self, coordinates: Coordinates) -> Memory:
        """Return the memory of one rank."""
        return step_memory(
            self.trainable,
            coordinates,
            self.hardware,
            num_states=self.num_states,
            micro_batch_size=self.work.micro_batch_size,
            micro_batches=self.micro_batches,
            seq_len=self.trainer.seq_len,
            copies_checkpoint=copies_checkpoint(self.trainer),
        )

    def speed(self, ranks: tuple[RankPlan, ...]) -> Speed | None:
        """Return the speed of 1F1B; None if a time is not known.

        The first micro batch passes every stage in turn. Each further one takes as long as the slowest stage. The
        update takes as long as the slowest rank's.
        """
        slots = [(rank.micro_batch_s, len(rank.stages)) for rank in ranks if rank.micro_batch_s is not None]
        updates = [rank.update_s for rank in ranks if rank.update_s is not None]
        if len(slots) < len(ranks) or len(updates) < len(ranks):
            return None
        busiest = busiest_of(ranks)
        passes = sum(slot * count for slot, count in slots) + (self.micro_batches - 1) * (busiest.micro_batch_s or 0.0)
        update_s = passes + max(updates)
        tokens = self.trainer.batch * self.trainer.seq_len / world_size(self.parallel)
        peak = (self.hardware.peak_tflops or 0.0) * 1e12
        parts = self.seconds_by_part(busiest)
        waiting = update_s - sum(parts.values())
        return Speed(
            update_s=update_s,
            tokens_per_s=tokens / update_s,
            mfu=tokens / update_s * self.trainable.flops_per_token(self.trainer.seq_len) / peak,
            waiting=waiting / update_s,
            seconds_by_part=parts | {"waiting": waiting},
        )

    def seconds_by_part(self, rank: RankPlan) -> dict[str, float]:
        """Return the seconds of an update that a rank spends on compute, on each axis and on the optimizer."""
        parts = {"compute": self.micro_batches * (rank.compute_s or 0.0)}
        for collective in rank.collectives:
            parts[collective.axis] = parts.get(collective.axis, 0.0) + (collective.seconds or 0.0)
        reduction = self.communication.gradient_reduction(rank.coordinates, rank.trained)
        parts["optimizer"] = (rank.update_s or 0.0) - sum(collective.seconds or 0.0 for collective in reduction)
        return parts


def busiest_of(ranks: tuple[RankPlan, ...]) -> RankPlan:
    """Return the kind of rank whose micro batches take the longest; the first one if times are not known."""
    return max(ranks, key=lambda rank: rank.micro_batch_s or 0.0)


def total_seconds(*parts: float | None) -> float | None:
    """Return the sum; None if a part is not known."""
    seconds = [part for part in parts if part is not None]
    return sum(seconds) if len(seconds) == len(parts) else None
