"""Memory and speed of scoring and decoding on one device, before weights are read (no mindspore).

docs/planning.md has the formulas, and compares the memory with measurements on the CPU.

Legend: B texts at the same time, T tokens of a text, S cached positions, W tokens of a prompt's graph, D hidden size,
L layers, N heads, V rows of the head, w bytes of the compute dtype.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Protocol

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.planner.activations import FP32
from gpt2x.planner.memory import COMMUNICATOR_BYTES, num_communicators, usable_bytes
from gpt2x.planner.values import ModelValues, model_values
from gpt2x.planner.work import ASCEND_FORWARD_BYTES, launch_s

# per matrix value that the CPU copies for decoding, by its type; int4 has a factor of 2 bytes per 32 values
COPY_BYTES = {"fp32": 0, "bf16": 2, "int8": 1, "int4": 9 / 16}
ROW_COPIES = 12  # of B T D: rows, queries, keys, values and the feed-forward layer's of one block
SCORE_COPIES = 3  # fp32, of B N T T: the scores of written-out attention in one block
DECODED_SCORE_COPIES = 6  # of all blocks, by MindSpore's operators on the CPU, which keeps 1 for scoring: measured
DECODED_LAUNCHES = 30  # operators of a block that decodes, without fusion
SCORED_LOGIT_BYTES = 20  # moved per logit of a forward pass: written, cast, log-softmax, its row read twice


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes per kind of content."""

    weights: float
    cache: float = 0.0  # keys and values
    activations: float = 0.0
    logits: float = 0.0
    communicators: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all kinds."""
        return sum(size for _, size in self)

    def __iter__(self) -> Iterator[tuple[str, float]]:
        for field in fields(self):
            yield field.name, getattr(self, field.name)


class InferenceEstimate:
    """Memory and seconds of one process.

    Args:
        model: with its vocabulary.
        parallel: a layout of data and tensor axes that divides the model.
        hardware: the device.
    """

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig):
        self.model, self.parallel, self.hardware = model, parallel, hardware
        self.coordinates = Coordinates(parallel, 0)
        self.values: ModelValues = model_values(model, self.coordinates)
        self.width = stats.BYTES[hardware.tensor_precision]

    def weights(self) -> float:
        """Return the bytes of parameters: matrices of blocks in the compute dtype, all others in fp32."""
        values = self.values
        blocks = values.block_matrices * self.model.num_layers
        return FP32 * (values.parameters - blocks) + self.width * blocks + self.head_copy()

    def head_copy(self) -> float:
        """Return the bytes of the head's matrix in the compute dtype, which each pass makes of fp32."""
        return self.width * self.values.head if self.width < FP32 else 0.0

    def communicators(self) -> float:
        """Return the bytes of HCCL's buffers."""
        return 0.0 if self.hardware.is_cpu else COMMUNICATOR_BYTES * num_communicators(self.coordinates)

    def of_model(self, model: ModelConfig) -> InferenceEstimate:
        """Return the estimate of a different model beside this one."""
        return InferenceEstimate(model, self.parallel, self.hardware)

    def rows(self, texts: int, length: int, is_decoding: bool) -> float:
        """Return the bytes of activations of a forward pass: those of one block at a time."""
        model, tensor = self.model, self.parallel.tensor
        rows = self.width * ROW_COPIES * texts * length * model.hidden_size
        scores = FP32 * texts * model.num_heads / tensor * length**2
        if self.hardware.computes_natively:
            return rows
        if self.hardware.is_cpu:  # scores of all blocks stay
            return rows + model.num_layers * (DECODED_SCORE_COPIES if is_decoding else 1) * scores
        is_written_out = is_decoding or not stats.uses_flash_attention(model, self.hardware)
        return rows + is_written_out * SCORE_COPIES * scores

    def position_bytes(self) -> float:
        """Return the bytes of the keys and values of one token in all blocks."""
        return 2 * self.width * self.model.hidden_size / self.parallel.tensor * self.model.num_layers

    def vocab_rows(self) -> float:
        """Return V, or the rank's part of it; 0 of a classifier."""
        return 0.0 if self.model.is_classifier else self.values.head / self.model.hidden_size


class InferenceWork(Protocol):
    """What a process computes at the same time."""

    @property
    def key(self) -> str:
        """The number of texts in the configuration."""

    @property
    def texts(self) -> int:
        """B."""

    @property
    def tokens(self) -> int:
        """Return the tokens of a pass, by which its seconds are divided."""

    @property
    def what(self) -> str:
        """Return it for people."""

    def with_one_text(self) -> InferenceWork:
        """Return the same with B = 1."""

    def memory(self, estimate: InferenceEstimate) -> InferenceMemory:
        """Return the bytes of one process."""

    def seconds(self, estimate: InferenceEstimate) -> dict[str, float] | None:
        """Return a device's seconds of a pass, by part; None on the CPU, or if its figures are not known."""


@dataclass(frozen=True)
class Decoding:
    """Completions of texts.

    Attributes:
        texts: decoded at the same time by a replica.
        cache_len: S.
        prompt_len: W; a prompt is read by a graph with a cache of its own.
        weights: `generation.weights`.
        cache: `generation.cache`.
        draft: a smaller model that drafts, in its own caches; its time is not counted.
        key: as in `InferenceWork`.
    """

    texts: int
    cache_len: int
    prompt_len: int
    weights: str = "fp32"
    cache: str = "fp32"
    draft: ModelConfig | None = None
    key: str = "generation.batch_size"

    @property
    def tokens(self) -> int:
        """One of each text."""
        return self.texts

    @property
    def what(self) -> str:
        """The texts and the length of their cache."""
        return f"decoding {plural(self.texts)} with {self.cache_len} cached positions"

    def with_one_text(self) -> Decoding:
        """Return the same for one text at a time."""
        return replace(self, texts=1)

    def memory(self, estimate: InferenceEstimate) -> InferenceMemory:
        """Return the bytes of weights, caches and the pass of a prompt, of the draft's model too."""
        values = estimate.values
        copies = COPY_BYTES[self.weights] * values.matrices
        copies += FP32 * values.largest if self.weights in ("int8", "int4") else 0  # a matrix while it is rounded
        position_bytes = estimate.position_bytes() / (2 if self.cache == "bf16" else 1)
        memory = InferenceMemory(
            weights=estimate.weights() + copies,
            cache=position_bytes * (self.texts * self.cache_len + self.prompt_len),
            activations=estimate.rows(1, self.prompt_len, is_decoding=True),
            logits=FP32 * self.texts * estimate.vocab_rows(),
            communicators=estimate.communicators(),
        )
        if self.draft is None:
            return memory
        beside = replace(self, draft=None).memory(estimate.of_model(self.draft))
        sums = {part: size + dict(beside)[part] for part, size in memory}
        return InferenceMemory(**sums | {"communicators": memory.communicators})

    def seconds(self, estimate: InferenceEstimate) -> dict[str, float] | None:
        """Return the seconds of a token of each text.

        Weights and caches are read once; the head's matrix is read in fp32, written and read in the compute dtype.
        Launching the operators takes the rest, if it takes longer. Products take less, up to about 100 texts.
        """
        bandwidth, width, values = estimate.hardware.memory_gb_per_s, estimate.width, estimate.values
        if estimate.hardware.is_cpu or bandwidth is None:
            return None
        head = (FP32 + 2 * width * (width < FP32)) * values.head
        weights = width * values.block_matrices * estimate.model.num_layers + head
        seconds = {
            "weights": weights / (bandwidth * 1e9),
            "cache": self.texts * self.cache_len * estimate.position_bytes() / (bandwidth * 1e9),
        }
        launches = estimate.model.num_layers * DECODED_LAUNCHES * launch_s(estimate.hardware)
        return seconds | {"waiting for launches": max(0.0, launches - sum(seconds.values()))}


@dataclass(frozen=True)
class Scoring:
    """Losses of texts, or scores of classes.

    Attributes:
        texts: in one forward pass.
        length: T.
        key: as in `InferenceWork`.
    """

    texts: int
    length: int
    key: str = "evaluation.batch_size"

    @property
    def tokens(self) -> int:
        """All of a forward pass."""
        return self.texts * self.length

    @property
    def what(self) -> str:
        """The texts and their length."""
        return f"scoring {plural(self.texts)} of {self.length} tokens"

    def with_one_text(self) -> Scoring:
        """Return the same for one text at a time."""
        return replace(self, texts=1)

    def memory(self, estimate: InferenceEstimate) -> InferenceMemory:
        """Return the bytes of weights and of a forward pass."""
        is_cpu = estimate.hardware.is_cpu
        copies = 1 if is_cpu else 2  # the CPU's graph ends at the logits
        table = FP32 * estimate.vocab_rows() * estimate.model.hidden_size  # of the head, which the CPU's graph copies
        return InferenceMemory(
            weights=estimate.weights() + table * is_cpu,
            activations=estimate.rows(self.texts, self.length, is_decoding=False),
            logits=copies * FP32 * self.tokens * estimate.vocab_rows(),
            communicators=estimate.communicators(),
        )

    def seconds(self, estimate: InferenceEstimate) -> dict[str, float] | None:
        """Return the seconds of a forward pass: products, and what other operators move."""
        hardware, model, tensor = estimate.hardware, estimate.model, estimate.parallel.tensor
        if hardware.is_cpu or not (hardware.peak_tflops and hardware.efficiency and hardware.memory_gb_per_s):
            return None
        flops = stats.forward_flops_per_token(model, self.length) * self.tokens / tensor
        moved = ASCEND_FORWARD_BYTES * estimate.width / 2 * self.tokens * model.hidden_size / tensor * model.num_layers
        moved += SCORED_LOGIT_BYTES * self.tokens * estimate.vocab_rows()
        return {
            "products": flops / (hardware.peak_tflops * 1e12 * hardware.efficiency),
            "other operators": moved / (hardware.memory_gb_per_s * 1e9),
        }


def plural(texts: int) -> str:
    """Return a number of texts in words."""
    return "1 text" if texts == 1 else f"{texts} texts"


@dataclass(frozen=True)
class InferencePlan:
    """The prediction for one process.

    Attributes:
        model: with its vocabulary.
        parallel: the layout; a replica has its own texts.
        hardware: the device.
        work: what is computed at the same time.
        num_nodes: machines; the processes of one share the memory of its CPU.
        memory: of one process.
        usable: bytes that a process can fill.
        seconds: of a pass, by part; None if not known.
    """

    model: ModelConfig
    parallel: ParallelConfig
    hardware: HardwareConfig
    work: InferenceWork
    num_nodes: int
    memory: InferenceMemory
    usable: float
    seconds: dict[str, float] | None

    @property
    def fits(self) -> bool:
        """Whether a process has enough memory."""
        return self.memory.total <= self.usable

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens per second of one replica."""
        return None if self.seconds is None else self.work.tokens / sum(self.seconds.values())


def plan_inference(
    model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, work: InferenceWork, num_nodes: int = 1
) -> InferencePlan:
    """Plan scoring or decoding; the arguments are those of `InferencePlan`."""
    estimate = InferenceEstimate(model, parallel, hardware)
    usable = usable_bytes(hardware, max(1, parallel.data * parallel.tensor // num_nodes))
    memory, seconds = work.memory(estimate), work.seconds(estimate)
    return InferencePlan(model, parallel, hardware, work, num_nodes, memory, usable, seconds)


def smaller_plans(plan: InferencePlan) -> Iterator[tuple[str, InferencePlan]]:
    """Yield changes that save memory, as overrides, and the plan with each.

    A tensor layout takes more devices of a node. On the CPU, processes would share what it saves.
    """
    model, parallel, hardware = plan.model, plan.parallel, plan.hardware
    if plan.work.texts > 1:
        yield f"{plan.work.key}=1", plan_inference(model, parallel, hardware, plan.work.with_one_text(), plan.num_nodes)
    for tensor in (2, 4, 8):
        is_larger = parallel.tensor < tensor <= hardware.devices_per_node
        if not hardware.is_cpu and is_larger and model.num_heads % tensor == 0:
            layout = replace(parallel, name=f"tp{tensor}", data=1, tensor=tensor)
            yield f"parallel=tp{tensor}", plan_inference(model, layout, hardware, plan.work, plan.num_nodes)
