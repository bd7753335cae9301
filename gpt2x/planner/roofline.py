"""Memory and speed of a layout on every kind of rank, before anything is built (no mindspore).

Memory is `gpt2x.planner.memory`. Time is a roofline: matrix products run at a calibrated fraction of the device's peak,
other work is limited by memory bandwidth, communication by link bandwidth, and nothing overlaps. docs/planning.md has
the formulas, the calibration and the assumptions.

Legend: b sequences per micro batch, T tokens per sequence, D hidden size, F feed-forward size, M micro batches,
P stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig, TrainerConfig
from gpt2x.config.layout import Coordinates, micro_batch_size, num_micro_batches, validate_layout, world_size
from gpt2x.model import stats
from gpt2x.optim.registry import state_names
from gpt2x.planner.communication import Collective, Communication, forward_passes, repeated
from gpt2x.planner.memory import FP32, Memory, accumulates, step_memory, usable_bytes, weights_bytes
from gpt2x.planner.values import ModelValues, TrainedValues, model_values, trained_values
from gpt2x.trainable import Trainable, trainable_of

ASSUMED_VOCABULARY = 50257  # GPT-2's, if neither the model nor the tokenizer states a size

# Bytes moved in device memory, counted from the operands and results in gpt2x/optim, gpt2x/train and gpt2x/ops.
DECAY_BYTES = 8  # per parameter: read and written by weight decay, if that is a separate pass
NORM_BYTES = 4  # per gradient: read for the global norm
SUM_BYTES = 12  # per gradient and micro batch: gradient and sum are read, the sum is written
CAST_BYTES = 6  # per weight and forward pass: 4 bytes read, 2 written
SCORE_BYTES = 32  # per attention weight: product, cast, mask, softmax, cast, output; the backward pass moves twice that
SCORE_DROPOUT_BYTES = 60  # per attention weight with dropout: hash, compare, scale, multiply
# gpt2x's CPU kernels: what a block does besides its products, per value of b T D. Forward: two layer norms, GELU, two
# residual sums, and the reordering around attention. Backward: the same, and sums of gradients and biases' gradients.
# On other devices the efficiency includes everything but the optimizer.
NATIVE_FORWARD_BYTES, NATIVE_BACKWARD_BYTES = 88, 132
NATIVE_DROPOUT_BYTES = 32
NATIVE_TIED_BYTES = 28  # per value of a tied embedding, whose two gradients are cleared, scaled and added
NATIVE_LOGIT_BYTES = 28  # per logit: written, read for its sum, turned into a gradient, read by two products
NATIVE_LAYER_S = 1.7e-3  # overhead of a block's operators, forward and backward: measured at hidden size 8


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
    """

    trainable: Trainable
    parallel: ParallelConfig
    hardware: HardwareConfig
    trainer: TrainerConfig
    num_states: int
    ranks: tuple[RankPlan, ...]
    usable: float
    speed: Speed | None

    @property
    def model(self) -> ModelConfig:
        """The model, with a vocabulary."""
        return self.trainable.model

    @property
    def fullest(self) -> RankPlan:
        """The kind of rank that takes the most memory."""
        return max(self.ranks, key=lambda rank: rank.memory.total)

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
    model = with_vocabulary(config)
    validate_layout(config.parallel, model)
    trainable = trainable_of(config, model)
    num_states = len(state_names(config.optimizer.kind))
    return plan_layout(trainable, config.parallel, config.hardware, config.trainer, num_states, config.launch.num_nodes)


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
) -> Plan:
    """Plan a layout.

    Args:
        trainable: what is trained, of a model with its vocabulary.
        parallel: a layout that divides model and batch.
        hardware: the device.
        trainer: batch and sequence length.
        num_states: fp32 states that the optimizer keeps per value.
        num_nodes: number of machines; the processes on one machine share the memory of its CPU.
    """
    model, estimate = trainable.model, LayoutEstimate(trainable, parallel, hardware, trainer, num_states)
    kinds: dict[tuple[bool, bool, int], list[Coordinates]] = {}
    for stage in range(parallel.pipeline):
        coordinates = Coordinates(parallel, stage * parallel.data * parallel.tensor)
        kind = (coordinates.is_first_stage, coordinates.is_last_stage, len(coordinates.layers(model.num_layers)))
        kinds.setdefault(kind, []).append(coordinates)
    ranks = tuple(estimate.rank(stages) for stages in kinds.values())
    usable = usable_bytes(hardware, max(1, world_size(parallel) // num_nodes))
    return Plan(trainable, parallel, hardware, trainer, num_states, ranks, usable, estimate.speed(ranks))


def update_bytes(num_states: int, is_native: bool) -> int:
    """Return the bytes that an update moves per value.

    Parameter, gradient and fp32 states are read; parameter and states are written. gpt2x's own kernel decays a
    parameter in the same pass.
    """
    return FP32 * (3 + 2 * num_states) + NORM_BYTES + (0 if is_native else DECAY_BYTES)


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
        self.num_states = num_states
        self.trainable, self.model = trainable, trainable.model
        self.parallel, self.hardware, self.trainer = parallel, hardware, trainer
        self.micro_batches = num_micro_batches(parallel, trainer)
        self.micro_batch_size = micro_batch_size(parallel, trainer)
        self.tokens = self.micro_batch_size * trainer.seq_len
        self.width = stats.BYTES[hardware.precision]
        self.communication = Communication(self.model, parallel, hardware, self.tokens)
        self.is_native = hardware.computes_natively
        self.is_flash = stats.uses_flash_attention(self.model, hardware) or self.is_native

    # ---- work of a stage

    def attention_passes(self, coordinates: Coordinates) -> int:
        """Return the forward passes through attention per backward pass."""
        return forward_passes(coordinates) + (self.parallel.recompute == "attention" and not self.is_native)

    def flops(self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues) -> float:
        """Return the floating-point operations of one micro batch.

        Products: 2 per weight and token for each forward pass, for the gradient of the input, and for the weight's
        gradient if it is trained. Attention: 2 x 2 x D x T/2 per token and layer, T instead of T/2 without a fused
        kernel, and twice that in the backward pass. Adapters add their own products to those of the frozen weights.
        """
        num_layers = len(coordinates.layers(self.model.num_layers))
        passes = forward_passes(coordinates) + 1
        matrices = num_layers * values.block_matrices + trained.adapter_matrices
        linear = 2 * self.tokens * (matrices * passes + trained.block_matrices)
        length = self.trainer.seq_len / (2 if self.is_flash else 1)
        attention = 4 * self.tokens * num_layers * self.model.hidden_size / self.parallel.tensor * length
        head = 2 * self.tokens * values.head * (2 + trained.trains_head)
        return linear + attention * (self.attention_passes(coordinates) + 2) + head

    def moved_bytes(self, coordinates: Coordinates, values: ModelValues, trained: TrainedValues) -> float:
        """Return the bytes that one micro batch moves in device memory besides its matrix products.

        These are casts, sums of gradients, attention weights without a fused kernel, and on the CPU other operators.
        """
        moved = 0.0
        if weights_bytes(self.parallel, self.hardware.precision) > self.width:
            blocks = len(coordinates.layers(self.model.num_layers)) * values.block_matrices
            moved += CAST_BYTES * (blocks * forward_passes(coordinates) + values.head)
        if accumulates(self.parallel, self.micro_batches):
            moved += SUM_BYTES * trained.parameters
        if not self.is_flash:
            each = SCORE_BYTES + SCORE_DROPOUT_BYTES * (stats.attention_dropout(self.model) > 0)
            scores = self.micro_batch_size * self.model.num_heads / self.parallel.tensor * self.trainer.seq_len**2
            layers = len(coordinates.layers(self.model.num_layers))
            moved += each * scores * layers * (self.attention_passes(coordinates) + 2)
        if self.is_native:
            each = NATIVE_FORWARD_BYTES * forward_passes(coordinates) + NATIVE_BACKWARD_BYTES
            each += NATIVE_DROPOUT_BYTES * (self.model.dropout > 0)
            layers = len(coordinates.layers(self.model.num_layers))
            moved += each * self.tokens * self.model.hidden_size / self.parallel.tensor * layers
            moved += NATIVE_TIED_BYTES * values.head * self.model.tie_embeddings
            moved += NATIVE_LOGIT_BYTES * self.tokens * values.head / self.model.hidden_size
        return moved

    # ---- ranks and time

    def rank(self, stages: list[Coordinates]) -> RankPlan:
        """Return the plan of one kind of rank; `stages` are the coordinates of one rank in each of its stages."""
        coordinates, model, hardware = stages[0], self.model, self.hardware
        values = model_values(model, coordinates)
        trained = trained_values(self.trainable, coordinates, values)
        per_micro_batch = self.communication.tensor_axis(coordinates) + self.communication.pipeline_axis(coordinates)
        per_update = self.communication.gradient_reduction(coordinates, trained)
        flops = self.flops(coordinates, values, trained)
        compute_s = micro_batch_s = update_s = None
        is_calibrated = self.is_native or not hardware.is_cpu
        if hardware.peak_tflops and hardware.efficiency and hardware.memory_gb_per_s and is_calibrated:
            bandwidth = hardware.memory_gb_per_s * 1e9
            compute_s = flops / (hardware.peak_tflops * 1e12 * hardware.efficiency)
            compute_s += self.moved_bytes(coordinates, values, trained) / bandwidth
            if self.is_native:
                compute_s += NATIVE_LAYER_S * len(coordinates.layers(model.num_layers))
            micro_batch_s = total_seconds(compute_s, *(part.seconds for part in per_micro_batch))
            optimizer_s = update_bytes(self.num_states, self.is_native) * trained.states / bandwidth
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
            micro_batch_size=self.micro_batch_size,
            micro_batches=self.micro_batches,
            seq_len=self.trainer.seq_len,
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
        busiest = max(ranks, key=lambda rank: rank.micro_batch_s or 0.0)
        passes = sum(slot * count for slot, count in slots) + (self.micro_batches - 1) * (busiest.micro_batch_s or 0.0)
        update_s = passes + max(updates)
        tokens = self.trainer.global_batch_size * self.trainer.seq_len / world_size(self.parallel)
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


def total_seconds(*parts: float | None) -> float | None:
    """Return the sum; None if a part is not known."""
    seconds = [part for part in parts if part is not None]
    return sum(seconds) if len(seconds) == len(parts) else None
