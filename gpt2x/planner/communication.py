"""Bytes that a rank sends in an update, and how long its links take (no mindspore). docs/planning.md derives them.

Legend: b sequences per micro batch, T tokens per sequence, D hidden size, V vocabulary size, n ranks of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.planner.activations import FP32
from gpt2x.planner.values import ModelValues, TrainedValues


@dataclass(frozen=True)
class Collective:
    """One kind of communication of one rank in an update.

    Attributes:
        axis: data, tensor, pipeline or embedding.
        payload: what is sent, for people.
        sent: bytes that the device sends.
        seconds: predicted time in which nothing else happens; None if a bandwidth is not known.
        crosses_nodes: whether the network between nodes is used.
        hidden_s: predicted time that passes while the device computes.
    """

    axis: str
    payload: str
    sent: float
    seconds: float | None
    crosses_nodes: bool
    hidden_s: float = 0.0

    def behind(self, compute_s: float) -> Collective:
        """Return the same communication while the device computes for `compute_s` seconds."""
        if self.seconds is None:
            return self
        hidden = min(self.seconds, compute_s)
        return replace(self, seconds=self.seconds - hidden, hidden_s=hidden)


@dataclass(frozen=True)
class Group:
    """Ranks that communicate, as the network sees them: `nodes` machines with `per_node` ranks each."""

    per_node: int
    nodes: int


def group_of(ranks: Sequence[int], devices_per_node: int) -> Group:
    """Return how ranks are distributed over nodes; if unevenly, every node counts as the one with the most ranks."""
    on_node: dict[int, int] = {}
    for rank in ranks:
        node = rank // devices_per_node
        on_node[node] = on_node.get(node, 0) + 1
    return Group(max(on_node.values()), len(on_node))


class Communication:
    """The communication of a layout.

    Args:
        model: with its vocabulary.
        parallel: the layout.
        hardware: bandwidths, devices per node, precision.
        tokens: b T, the tokens of a micro batch.
    """

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, tokens: int):
        self.model, self.parallel, self.hardware, self.tokens = model, parallel, hardware, tokens
        self.width = stats.BYTES[hardware.tensor_precision]

    # ---- per micro batch

    def tensor_axis(self, coordinates: Coordinates) -> list[Collective]:
        """Return the collectives of one micro batch over the tensor axis.

        Each half block sums its output in the forward pass and its input's gradient in the backward pass
        (arXiv:1909.08053, section 3). Sequence parallelism replaces each sum by an all-gather and a reduce-scatter of
        half the volume each (arXiv:2205.05198).
        """
        parallel, hidden = self.parallel, self.tokens * self.model.hidden_size
        if parallel.tensor == 1:
            return []
        ranks = [coordinates.rank_at(tensor=index) for index in range(parallel.tensor)]
        num_sums = len(coordinates.layers(self.model.num_layers)) * (2 * forward_passes(coordinates) + 2)
        collectives = [self.collective("tensor", "hidden states", ranks, hidden * self.width, 2, num_sums)]
        if parallel.vocab_parallel and coordinates.is_first_stage:
            lookups = 1 + (not coordinates.is_last_stage)
            collectives.append(self.collective("tensor", "embedding", ranks, hidden * FP32, 2, lookups))
        if parallel.vocab_parallel and coordinates.is_last_stage:
            collectives.append(self.collective("tensor", "gradient of the head", ranks, hidden * self.width, 2))
            sums = (parallel.tensor + 1) * self.tokens * FP32  # log-sum-exp of each rank, and the label's logit
            collectives.append(self.collective("tensor", "cross entropy", ranks, sums, 2))
        return collectives

    def pipeline_axis(self, coordinates: Coordinates) -> list[Collective]:
        """Return the messages of one micro batch: hidden states to the next stage, their gradient to the previous."""
        split = self.parallel.tensor if self.parallel.sequence_parallel else 1
        size = self.tokens * self.model.hidden_size * self.width / split
        messages = []
        if not coordinates.is_last_stage:
            messages.append(self.message("hidden states", coordinates, coordinates.stage + 1, size))
        if not coordinates.is_first_stage:
            messages.append(self.message("gradients", coordinates, coordinates.stage - 1, size))
        return messages

    def block_gather(self, coordinates: Coordinates, values: ModelValues, adapters: float) -> Collective | None:
        """Return the gather of one block's weights under full sharding: matrices in the compute dtype, vectors in fp32.

        Args:
            coordinates: of the rank.
            values: of the model.
            adapters: values of one block's adapters.
        """
        if not coordinates.parallel.splits_weights:
            return None
        size = self.width * (values.block_matrices + adapters) + FP32 * (values.block - values.block_matrices)
        return self.collective("data", "weights of blocks, gathered", self.shard_owners(coordinates), size, 1)

    def micro_batch_reduction(self, coordinates: Coordinates, trained: TrainedValues) -> list[Collective]:
        """Return how gradients are summed in each micro batch: with `zero_stage` 2 all of them, with 3 those of blocks.

        With 3 the gradients of a block travel in the compute dtype, or in fp32 with `parallel.reduce_dtype=fp32`. A
        graph ends with them, so that no computation hides them.
        """
        parallel = self.parallel
        if parallel.splits_weights:
            layers = len(coordinates.layers(self.model.num_layers))
            width = FP32 if parallel.reduce_dtype == "fp32" else self.width
            size, shard, count = width * trained.in_blocks / layers, width * trained.block_states / layers, layers
        elif parallel.splits_gradients:
            size, shard, count = FP32 * parallel.shards * trained.masters, FP32 * trained.masters, 1
        else:
            return []
        name = "gradients of blocks" if parallel.splits_weights else "gradients"
        return self.scattered(name, coordinates, size, shard, count)

    def scattered(
        self, name: str, coordinates: Coordinates, size: float, shard: float, count: int = 1
    ) -> list[Collective]:
        """Return a reduce-scatter of `size` bytes, and the sum of `shard` bytes over replicas beyond the shards."""
        if not size:
            return []
        owners = self.shard_owners(coordinates)
        collectives = [self.collective("data", f"{name}, scattered", owners, size, 1, count)]
        data, shards = self.parallel.data, self.parallel.shards
        if data > shards:
            same = [coordinates.rank_at(data=index) for index in range(coordinates.shard, data, shards)]
            collectives.append(self.collective("data", f"{name} of a shard", same, shard, 2, count))
        return collectives

    def shard_owners(self, coordinates: Coordinates) -> list[int]:
        """Return the ranks that split what `parallel.zero_stage` says with this one."""
        first = coordinates.data // self.parallel.shards * self.parallel.shards
        return [coordinates.rank_at(data=index) for index in range(first, first + self.parallel.shards)]

    # ---- per update

    def gradient_reduction(self, coordinates: Coordinates, trained: TrainedValues) -> list[Collective]:
        """Return the collectives of one update: the tied embedding between its two stages, gradients, new weights.

        What `micro_batch_reduction` has summed is left out.
        """
        parallel = self.parallel
        collectives = self.tied_embedding(coordinates, trained)
        if parallel.data == 1:
            return collectives
        replicas = [coordinates.rank_at(data=index) for index in range(parallel.data)]
        sharded = parallel.shards * trained.masters  # parameters whose states are divided into shards
        if sharded:
            if parallel.splits_weights or not parallel.splits_gradients:
                collectives += self.scattered("gradients", coordinates, FP32 * sharded, FP32 * trained.masters)
            owners = self.shard_owners(coordinates)
            collectives.append(self.collective("data", "updated weights, gathered", owners, FP32 * sharded, 1))
        rest = trained.parameters - sharded - (trained.in_blocks if parallel.splits_weights else 0)
        if rest > 0:
            collectives.append(self.collective("data", "gradients", replicas, FP32 * rest, 2))
        return collectives

    def tied_embedding(self, coordinates: Coordinates, trained: TrainedValues) -> list[Collective]:
        """Return the sum of the tied embedding's gradient over the first and the last stage, on these two stages."""
        parallel = self.parallel
        is_end = coordinates.is_first_stage or coordinates.is_last_stage
        if parallel.pipeline == 1 or not (is_end and self.model.tie_embeddings and trained.trains_embedding):
            return []
        split = parallel.tensor if parallel.vocab_parallel else 1
        size = stats.padded_vocab_size(self.model) * self.model.hidden_size * FP32 / split
        ends = [coordinates.rank_at(stage=0), coordinates.rank_at(stage=parallel.pipeline - 1)]
        return [self.collective("embedding", "gradient of the tied embedding", ends, size, 2)]

    # ---- links

    def collective(
        self, axis: str, payload: str, ranks: Sequence[int], size: float, passes: int, count: int = 1
    ) -> Collective:
        """Return `count` collectives of `size` bytes each.

        Args:
            axis: as in `Collective`.
            payload: as in `Collective`.
            ranks: the group.
            size: bytes.
            passes: 1 for a reduce-scatter or an all-gather, 2 for an all-reduce.
            count: how often it happens.

        In a group of n ranks each pass sends (n - 1) / n of the bytes (a ring, or direct exchange). Across nodes the
        collective is hierarchical: the k ranks of one node first exchange all bytes, then rank i of every node
        exchanges its 1/k slice with rank i of the other nodes.
        """
        group = group_of(ranks, self.hardware.devices_per_node)
        if self.hardware.is_cpu:
            passes = 2  # a CPU gather is the all-reduce of a padded buffer, a reduce-scatter a sliced all-reduce
        per_node, nodes = group.per_node, group.nodes
        within = count * passes * size * (per_node - 1) / per_node
        between = count * passes * size / per_node * (nodes - 1) / nodes
        seconds = self.seconds(within, between, max(1, per_node - 1))
        return Collective(axis, payload, within + between, seconds, nodes > 1)

    def message(self, payload: str, coordinates: Coordinates, stage: int, size: float) -> Collective:
        """Return a message of `size` bytes to the same rank of another stage."""
        ranks = (coordinates.rank, coordinates.rank_at(stage=stage))
        crosses = group_of(ranks, self.hardware.devices_per_node).nodes > 1
        seconds = self.seconds(0.0 if crosses else size, size if crosses else 0.0, 1)
        return Collective("pipeline", payload, size, seconds, crosses)

    def seconds(self, within: float, between: float, links: int) -> float | None:
        """Return the time to send `within` bytes in a node by `links` links at once, and `between` bytes to others."""
        link, network = self.hardware.link_gb_per_s, self.hardware.network_gb_per_s
        if (within and link is None) or (between and network is None):
            return None
        in_node = within / (links * link * 1e9) if link and within else 0.0
        return in_node + (between / (network * 1e9) if network and between else 0.0)


def forward_passes(coordinates: Coordinates) -> int:
    """Return the forward passes through a block per backward pass.

    One, one more if a later stage follows (`gpt2x.train.pipeline_step`), and one more with `recompute=block`. Two under
    full sharding, which computes every block again in its backward pass.
    """
    if coordinates.parallel.splits_weights:
        return 2
    return 1 + (not coordinates.is_last_stage) + (coordinates.parallel.recompute == "block")


def repeated(collective: Collective, count: int) -> Collective:
    """Return the same communication `count` times."""
    seconds = None if collective.seconds is None else count * collective.seconds
    return replace(collective, sent=count * collective.sent, seconds=seconds, hidden_s=count * collective.hidden_s)
