"""What a rank sends in an update, and how long its links take (no mindspore). docs/planning.md derives it.

Legend: b sequences of a micro batch, T tokens, D hidden, V vocabulary, n processes of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats
from gpt2x.planner.memory import FP32, TrainedElements, weights_bytes


@dataclass(frozen=True)
class Collective:
    """A kind of communication of one rank in an update.

    Attributes:
        axis: data, tensor, pipeline or embedding.
        what: for people.
        sent: bytes that the device sends.
        seconds: predicted; None where a bandwidth is not known.
        crosses_nodes: whether the network between nodes is used.
    """

    axis: str
    what: str
    sent: float
    seconds: float | None
    crosses_nodes: bool


@dataclass(frozen=True)
class Span:
    """Ranks that communicate, as the network sees them: `nodes` machines with `per_node` ranks each."""

    per_node: int
    nodes: int

    @property
    def size(self) -> int:
        """Ranks."""
        return self.per_node * self.nodes


def span(ranks: Sequence[int], devices_per_node: int) -> Span:
    """How ranks lie on nodes; where they lie unevenly, as if every node had the most that one has."""
    on_node: dict[int, int] = {}
    for rank in ranks:
        node = rank // devices_per_node
        on_node[node] = on_node.get(node, 0) + 1
    return Span(max(on_node.values()), len(on_node))


class Traffic:
    """The communication of a layout.

    Args:
        model: with its vocabulary known.
        parallel: the layout.
        hardware: bandwidths, devices of a node, precision.
        rows: b T, tokens of a micro batch.
    """

    def __init__(self, model: ModelConfig, parallel: ParallelConfig, hardware: HardwareConfig, rows: int):
        self.model, self.parallel, self.hardware, self.rows = model, parallel, hardware, rows
        self.width = stats.BYTES[hardware.precision]

    def seconds(self, sent_within: float, sent_between: float, lanes: int) -> float | None:
        """Time to send bytes within a node, over `lanes` links at once, and between nodes."""
        link, network = self.hardware.link_gb_per_s, self.hardware.network_gb_per_s
        if (sent_within and link is None) or (sent_between and network is None):
            return None
        within = sent_within / (lanes * link * 1e9) if link and sent_within else 0.0
        return within + (sent_between / (network * 1e9) if network and sent_between else 0.0)

    def collective(
        self, axis: str, what: str, ranks: Sequence[int], size: float, passes: int, times: int = 1
    ) -> Collective:
        """A collective on `size` bytes: 1 pass is a reduce-scatter or an all-gather, 2 an all-reduce.

        A pass in a group of n sends (n - 1) / n of the bytes (a ring, or direct exchange). Over several nodes it goes
        by levels: k ranks of a node exchange the whole, then each exchanges its k-th with its like on other nodes.
        """
        group = span(ranks, self.hardware.devices_per_node)
        if self.hardware.is_cpu:
            passes = 2  # a gather is the all-reduce of a padded buffer there, a reduce-scatter one that is cut
        per_node, nodes = group.per_node, group.nodes
        within = times * passes * size * (per_node - 1) / per_node
        between = times * passes * size / per_node * (nodes - 1) / nodes
        seconds = self.seconds(within, between, max(1, per_node - 1))
        return Collective(axis, what, within + between, seconds, nodes > 1)

    def message(self, what: str, coordinates: Coordinates, other: int, size: float, times: int) -> Collective:
        """Messages to another stage."""
        crosses = span((coordinates.rank, other), self.hardware.devices_per_node).nodes > 1
        sent = times * size
        seconds = self.seconds(0.0 if crosses else sent, sent if crosses else 0.0, 1)
        return Collective("pipeline", what, sent, seconds, crosses)

    def tensor(self, coordinates: Coordinates) -> list[Collective]:
        """Of one micro batch (arXiv:1909.08053, section 3): a sum over the tensor axis a half block, forward and
        backward; a gather and a scatter of half the volume each under sequence parallelism (arXiv:2205.05198).
        """
        parallel, hidden = self.parallel, self.rows * self.model.hidden_size
        if parallel.tensor == 1:
            return []
        ranks = [coordinates.rank_at(tensor=index) for index in range(parallel.tensor)]
        count = len(coordinates.layers(self.model.num_layers)) * (2 * forwards(coordinates) + 2)
        found = [self.collective("tensor", "hidden states", ranks, hidden * self.width, 2, count)]
        if parallel.vocab_parallel and coordinates.is_first_stage:
            times = 1 + (not coordinates.is_last_stage)
            found.append(self.collective("tensor", "embedding", ranks, hidden * FP32, 2, times))
        if parallel.vocab_parallel and coordinates.is_last_stage:
            found.append(self.collective("tensor", "gradient of the head", ranks, hidden * self.width, 2))
            sums = (parallel.tensor + 1) * self.rows * FP32  # each share's logarithmic sum, and the label's logit
            found.append(self.collective("tensor", "cross entropy", ranks, sums, 2))
        return found

    def pipeline(self, coordinates: Coordinates) -> list[Collective]:
        """Of one micro batch: hidden states to the stage behind, their gradient to the one before."""
        split = self.parallel.tensor if self.parallel.sequence_parallel else 1
        size = self.rows * self.model.hidden_size * self.width / split
        found = []
        if not coordinates.is_last_stage:
            found.append(
                self.message("hidden states", coordinates, coordinates.rank_at(stage=coordinates.stage + 1), size, 1)
            )
        if not coordinates.is_first_stage:
            found.append(
                self.message("gradients", coordinates, coordinates.rank_at(stage=coordinates.stage - 1), size, 1)
            )
        return found

    def update(self, coordinates: Coordinates, trained: TrainedElements) -> list[Collective]:
        """Once an update: the tied table between its two stages, then gradients, then updated weights."""
        parallel, found = self.parallel, []
        is_end = coordinates.is_first_stage or coordinates.is_last_stage
        if parallel.pipeline > 1 and is_end and self.model.tie_embeddings and trained.is_table:
            split = parallel.tensor if parallel.vocab_parallel else 1
            table = stats.padded_vocab_size(self.model) * self.model.hidden_size * FP32 / split
            ends = [coordinates.rank_at(stage=0), coordinates.rank_at(stage=parallel.pipeline - 1)]
            found.append(self.collective("embedding", "gradient of the tied table", ends, table, 2))
        if parallel.data == 1:
            return found
        shards = parallel.optimizer_shards
        everyone = [coordinates.rank_at(data=index) for index in range(parallel.data)]
        shared = shards * trained.masters  # parameters whose states are shared out
        if shared:
            first = coordinates.data // shards * shards
            owners = [coordinates.rank_at(data=index) for index in range(first, first + shards)]
            found.append(self.collective("data", "gradients, scattered", owners, FP32 * shared, 1))
            if parallel.data > shards:
                alike = [coordinates.rank_at(data=index) for index in range(coordinates.shard, parallel.data, shards)]
                found.append(self.collective("data", "gradients of a share", alike, FP32 * trained.masters, 2))
            width = weights_bytes(parallel, self.hardware.precision)
            found.append(self.collective("data", "updated weights, gathered", owners, width * shared, 1))
        if trained.parameters > shared:
            rest = FP32 * (trained.parameters - shared)
            found.append(self.collective("data", "gradients", everyone, rest, 2))
        return found


def forwards(coordinates: Coordinates) -> int:
    """Forward passes through a block for one backward: its own, a stage's, and recomputation's."""
    return 1 + (not coordinates.is_last_stage) + (coordinates.parallel.recompute == "block")


def times(part: Collective, count: int) -> Collective:
    """The same communication `count` times."""
    seconds = None if part.seconds is None else count * part.seconds
    return replace(part, sent=count * part.sent, seconds=seconds)
