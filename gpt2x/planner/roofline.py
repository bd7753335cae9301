"""What a layout costs on every kind of rank, before anything is built: arithmetic alone (no mindspore).

Memory is `gpt2x.planner.memory`. Time is a roofline: matrix products at a calibrated share of the device's peak, its
other work by memory bandwidth, communication by link bandwidth, nothing overlapped. docs/planning.md has the formulas,
the calibration and what is assumed.

Legend: b sequences of a micro batch, T tokens, D hidden, F feed-forward, V vocabulary, M micro batches, P stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig, TrainerConfig
from gpt2x.config.layout import Coordinates, micro_batch_size, num_micro_batches, validate_layout, world_size
from gpt2x.model import stats
from gpt2x.optim.registry import state_names
from gpt2x.planner.communication import Collective, Traffic, forwards, times
from gpt2x.planner.memory import (
    FP32,
    Elements,
    Memory,
    TrainedElements,
    accumulates,
    elements,
    memory_of_trainable,
    step_memory,
    trained_elements,
    usable_bytes,
    weights_bytes,
)
from gpt2x.trainable import Trainable, trainable_of

ASSUMED_VOCABULARY = 50257  # GPT-2's, where neither model nor tokenizer states one

# Bytes that a value moves in device memory, by counting operands and results in gpt2x/optim, gpt2x/train and gpt2x/ops.
DECAY_BYTES = 8  # a parameter read and written by weight decay, where that is a pass of its own
NORM_BYTES = 4  # a gradient read for the global norm
SUM_BYTES = 12  # a gradient and its sum read, the sum written: each micro batch
CAST_BYTES = 6  # an fp32 weight read, one of 2 bytes written: each forward
SCORE_BYTES = 32  # an attention weight forward: product, cast, mask, softmax, cast, mix; backward moves twice that
SCORE_DROPOUT_BYTES = 60  # its dropout: hash, compare, scale and product
# Of gpt2x's own kernels for the CPU: what stands between a block's products, for
# each value of b T D: two layer norms, GELU, two sums and attention's ends forward; these, the sums of gradients and
# those of the biases backward. Elsewhere all but the optimizer is in the efficiency.
NATIVE_FORWARD_BYTES, NATIVE_BACKWARD_BYTES = 88, 132
NATIVE_DROPOUT_BYTES = 32
NATIVE_TIED_BYTES = 28  # the two gradients of a table that is embedding and head: cleared, scaled, summed up
NATIVE_LOGIT_BYTES = 28  # written, read for their sum, made gradients, read by two products
NATIVE_LAYER_S = 1.7e-3  # of a block's operators without any work, forward and backward: measured at hidden size 8


@dataclass(frozen=True)
class RankPlan:
    """One kind of rank: a stage, since all ranks of a stage are alike.

    Attributes:
        place: the first rank of the kind.
        stages: numbers of the stages that are alike.
        layers: blocks of the stage.
        elements: what it holds of the model.
        trained: what it updates.
        memory: bytes.
        flops: floating-point operations of an update, recomputation included.
        collectives: communication of an update.
        compute_s: of one micro batch: products and other work; None where not known.
        micro_batch_s: of one micro batch, communication included.
        update_s: after the last micro batch: gradient reduction, optimizer, all-gather of parameters.
    """

    coordinates: Coordinates
    stages: tuple[int, ...]
    layers: int
    elements: Elements
    trained: TrainedElements
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
    """What the roofline predicts.

    Attributes:
        update_s: seconds of an update.
        tokens_per_s: of one device.
        mfu: model FLOPs against the device's peak, in [0, 1].
        waiting: share of the update in which the busiest stage waits for others.
        shares: what the update's seconds go to on the busiest stage.
    """

    update_s: float
    tokens_per_s: float
    mfu: float
    waiting: float
    shares: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """A layout, its kinds of ranks, and what they add up to.

    Attributes:
        trainable: what is trained of which model.
        num_states: fp32 states that the optimizer keeps per value.
        ranks: kinds, in the order of stages.
        usable: bytes of a device that a run can fill.
        speed: None where the hardware's figures are not known.
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
        """The rank that takes most memory."""
        return max(self.ranks, key=lambda rank: rank.memory.total)

    @property
    def fits(self) -> bool:
        """Whether every rank fits its device."""
        return self.fullest.memory.total <= self.usable

    @property
    def micro_batches(self) -> int:
        """Forward passes an update."""
        return num_micro_batches(self.parallel, self.trainer)

    @property
    def micro_batch_size(self) -> int:
        """Sequences a forward pass."""
        return micro_batch_size(self.parallel, self.trainer)


def make_plan(config: TrainConfig) -> Plan:
    """Plan what a validated configuration would run.

    Raises:
        UserError: the layout does not divide the vocabulary that is assumed.
    """
    model = with_vocabulary(config)
    validate_layout(config.parallel, model)
    trainable = trainable_of(config, model)
    num_states = len(state_names(config.optimizer.kind))
    return plan(trainable, config.parallel, config.hardware, config.trainer, num_states, config.launch.num_nodes)


def with_vocabulary(config: TrainConfig) -> ModelConfig:
    """The model with a vocabulary: its own, else the tokenizer's, else GPT-2's; no data is read."""
    assumed = config.model.vocab_size or config.tokenizer.vocab_size or ASSUMED_VOCABULARY
    return replace(config.model, vocab_size=assumed)


def plan(
    trainable: Trainable,
    parallel: ParallelConfig,
    hardware: HardwareConfig,
    trainer: TrainerConfig,
    num_states: int,
    num_nodes: int = 1,
) -> Plan:
    """Plan a layout.

    Args:
        trainable: what is trained of a model whose vocabulary is known.
        parallel: a layout that divides model and batch.
        hardware: the device.
        trainer: batch and sequence length.
        num_states: fp32 states that the optimizer keeps per value.
        num_nodes: machines, of which a CPU's share their memory among processes.
    """
    model, estimate = trainable.model, LayoutEstimate(trainable, parallel, hardware, trainer, num_states)
    kinds: dict[tuple[bool, bool, int], list[Coordinates]] = {}
    for stage in range(parallel.pipeline):
        coordinates = Coordinates(parallel, stage * parallel.data * parallel.tensor)
        kind = (coordinates.is_first_stage, coordinates.is_last_stage, len(coordinates.layers(model.num_layers)))
        kinds.setdefault(kind, []).append(coordinates)
    ranks = tuple(estimate.rank(all_coordinates) for all_coordinates in kinds.values())
    usable = usable_bytes(hardware, max(1, world_size(parallel) // num_nodes))
    return Plan(trainable, parallel, hardware, trainer, num_states, ranks, usable, estimate.speed(ranks))


def update_bytes(num_states: int, is_native: bool) -> int:
    """Return the bytes that an update moves per value.

    Parameter, gradient and fp32 states are read; parameter and states are written. gpt2x's own kernel decays a
    parameter in the same pass.
    """
    return FP32 * (3 + 2 * num_states) + NORM_BYTES + (0 if is_native else DECAY_BYTES)


class LayoutEstimate:
    """The work, memory and time of one layout of a model on a device."""

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
        self.rows = self.micro_batch_size * trainer.seq_len
        self.width = stats.BYTES[hardware.precision]
        self.traffic = Traffic(self.model, parallel, hardware, self.rows)
        self.is_native = hardware.computes_natively
        self.flash = stats.uses_flash_attention(self.model, hardware) or self.is_native

    # ---- work of a stage

    def attention_forwards(self, coordinates: Coordinates) -> int:
        """Forward passes through attention for one backward."""
        return forwards(coordinates) + (self.parallel.recompute == "attention" and not self.is_native)

    def flops(self, coordinates: Coordinates, count: Elements, trained: TrainedElements) -> float:
        """Return the floating-point operations of one micro batch.

        2 per weight and token for each forward pass, for the gradient of its input, and for its own gradient if it is
        trained; 2 x 2 x D x T/2 per token and layer for attention, with the whole T where it is written out, twice
        that backward. Adapters add their own products to the frozen weights'.
        """
        num_layers = len(coordinates.layers(self.model.num_layers))
        passes = forwards(coordinates) + 1
        matrices = num_layers * count.block_matrices + trained.adapter_matrices
        linear = 2 * self.rows * (matrices * passes + trained.block_matrices)
        length = self.trainer.seq_len / (2 if self.flash else 1)
        attention = 4 * self.rows * num_layers * self.model.hidden_size / self.parallel.tensor * length
        head = 2 * self.rows * count.head * (2 + trained.is_head)
        return linear + attention * (self.attention_forwards(coordinates) + 2) + head

    def moved_bytes(self, coordinates: Coordinates, count: Elements, trained: TrainedElements) -> float:
        """Bytes that one micro batch moves in device memory beside its matrix products: casts, sums, attention weights
        that are written out.
        """
        moved = 0.0
        if weights_bytes(self.parallel, self.hardware.precision) > self.width:
            blocks = len(coordinates.layers(self.model.num_layers)) * count.block_matrices
            moved += CAST_BYTES * (blocks * forwards(coordinates) + count.head)
        if accumulates(self.parallel, self.micro_batches):
            moved += SUM_BYTES * trained.parameters
        if not self.flash:
            each = SCORE_BYTES + SCORE_DROPOUT_BYTES * (stats.attention_dropout(self.model) > 0)
            scores = self.micro_batch_size * self.model.num_heads / self.parallel.tensor * self.trainer.seq_len**2
            layers = len(coordinates.layers(self.model.num_layers))
            moved += each * scores * layers * (self.attention_forwards(coordinates) + 2)
        if self.is_native:
            each = NATIVE_FORWARD_BYTES * forwards(coordinates) + NATIVE_BACKWARD_BYTES
            each += NATIVE_DROPOUT_BYTES * (self.model.dropout > 0)
            layers = len(coordinates.layers(self.model.num_layers))
            moved += each * self.rows * self.model.hidden_size / self.parallel.tensor * layers
            moved += NATIVE_TIED_BYTES * count.head * self.model.tie_embeddings
            moved += NATIVE_LOGIT_BYTES * self.rows * count.head / self.model.hidden_size
        return moved

    # ---- ranks and time

    def rank(self, all_coordinates: list[Coordinates]) -> RankPlan:
        """The plan of a kind of rank."""
        coordinates = all_coordinates[0]
        count, hardware = elements(self.model, coordinates), self.hardware
        trained = trained_elements(self.trainable, coordinates, count)
        full = step_memory(
            self.model,
            coordinates,
            hardware,
            num_states=self.num_states,
            micro_batch_size=self.micro_batch_size,
            micro_batches=self.micro_batches,
            seq_len=self.trainer.seq_len,
        )
        memory = memory_of_trainable(full, self.trainable, coordinates, hardware, self.rows)
        each = self.traffic.tensor(coordinates) + self.traffic.pipeline(coordinates)
        once = self.traffic.update(coordinates, trained)
        flops = self.flops(coordinates, count, trained)
        compute_s = micro_batch_s = update_s = None
        is_calibrated = self.is_native or not hardware.is_cpu
        if hardware.peak_tflops and hardware.efficiency and hardware.memory_gb_per_s and is_calibrated:
            bandwidth = hardware.memory_gb_per_s * 1e9
            compute_s = flops / (hardware.peak_tflops * 1e12 * hardware.efficiency)
            compute_s += self.moved_bytes(coordinates, count, trained) / bandwidth
            if self.is_native:
                compute_s += NATIVE_LAYER_S * len(coordinates.layers(self.model.num_layers))
            micro_batch_s = add(compute_s, *(part.seconds for part in each))
            of_value = update_bytes(self.num_states, self.is_native)
            update_s = add(of_value * trained.states / bandwidth, *(part.seconds for part in once))
        return RankPlan(
            coordinates=coordinates,
            stages=tuple(other.stage for other in all_coordinates),
            layers=len(coordinates.layers(self.model.num_layers)),
            elements=count,
            trained=trained,
            memory=memory,
            flops=flops * self.micro_batches,
            collectives=tuple([times(part, self.micro_batches) for part in each] + once),
            compute_s=compute_s,
            micro_batch_s=micro_batch_s,
            update_s=update_s,
        )

    def speed(self, ranks: tuple[RankPlan, ...]) -> Speed | None:
        """1F1B: every stage once, and the slowest for each further micro batch; then the slowest update."""
        slots = [(rank.micro_batch_s, len(rank.stages)) for rank in ranks]
        updates = [rank.update_s for rank in ranks if rank.update_s is not None]
        known = [(slot, count) for slot, count in slots if slot is not None]
        if len(known) < len(ranks) or len(updates) < len(ranks):
            return None
        busiest = max(ranks, key=lambda rank: rank.micro_batch_s or 0.0)
        slot = busiest.micro_batch_s or 0.0
        passes = sum(each * count for each, count in known) + (self.micro_batches - 1) * slot
        update_s = passes + max(updates)
        tokens = self.trainer.global_batch_size * self.trainer.seq_len / world_size(self.parallel)
        peak = (self.hardware.peak_tflops or 0.0) * 1e12
        shares = {"compute": self.micro_batches * (busiest.compute_s or 0.0)}
        for part in busiest.collectives:
            shares[part.axis] = shares.get(part.axis, 0.0) + (part.seconds or 0.0)
        once = sum(part.seconds or 0.0 for part in self.traffic.update(busiest.coordinates, busiest.trained))
        shares["optimizer"] = (busiest.update_s or 0.0) - once
        waiting = update_s - sum(shares.values())
        shares["waiting"] = waiting
        return Speed(
            update_s=update_s,
            tokens_per_s=tokens / update_s,
            mfu=tokens / update_s * self.trainable.flops_per_token(self.trainer.seq_len) / peak,
            waiting=waiting / update_s,
            shares=shares,
        )


def add(*parts: float | None) -> float | None:
    """The sum; None where a part is not known."""
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None
