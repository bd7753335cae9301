"""Which part of each logical tensor a process has: arithmetic on names and shapes (no mindspore; numpy for values).

A local tensor is composed of boxes of the logical tensor: one, or three if the fused query-key-value projection is
split by heads. Checkpoints store boxes, so every layout reads the checkpoints of every other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from gpt2x.config import ModelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.model import stats

if TYPE_CHECKING:
    import numpy as np

Shape = tuple[int, ...]

READ_THREADS = 2  # threads that read or draw weights, one tensor each


class Readable(Protocol):
    """Logical tensors whose parts can be read."""

    def read(self, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """Return the values of a box of the tensor `name`."""


@dataclass(frozen=True)
class Box:
    """A box of the logical tensor, and where it starts in the local tensor."""

    start: Shape  # in the logical tensor
    at: Shape  # in the local tensor
    shape: Shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """Return the slices of the box within the local tensor."""
        return tuple(slice(a, a + n) for a, n in zip(self.at, self.shape, strict=True))


@dataclass(frozen=True)
class Placement:
    """A local tensor: its shape and the boxes that fill it. What no box covers is zero, as padding rows are."""

    logical_shape: Shape
    shape: Shape
    boxes: tuple[Box, ...]

    def rows(self, start: int, stop: int) -> Placement:
        """Return the placement of the local rows from `start` to `stop`."""
        boxes = []
        for box in self.boxes:
            first, last = max(start, box.at[0]), min(stop, box.at[0] + box.shape[0])
            if first < last:
                begin = (box.start[0] + first - box.at[0], *box.start[1:])
                boxes.append(Box(begin, (first - start, *box.at[1:]), (last - first, *box.shape[1:])))
        return replace(self, shape=(stop - start, *self.shape[1:]), boxes=tuple(boxes))

    def read(self, tensors: Readable, name: str) -> np.ndarray:
        """Read the local tensor, fp32."""
        import numpy as np

        values = np.zeros(self.shape, np.float32)
        for box in self.boxes:
            values[box.slices] = tensors.read(name, box.start, box.shape)
        return values

    def parts(self, values: np.ndarray) -> list[tuple[Shape, np.ndarray]]:
        """Return (start in the logical tensor, values) of each box of a local tensor; padding is in none of them."""
        return [(box.start, values[box.slices]) for box in self.boxes]


def whole(shape: Shape, num_rows: int | None = None) -> Placement:
    """Return the placement of a whole tensor, with padding rows up to `num_rows`."""
    zeros = (0,) * len(shape)
    return Placement(shape, (num_rows or shape[0], *shape[1:]), (Box(zeros, zeros, shape),))


def tensor_slice(shape: Shape, dim: int, index: int, count: int, segments: int = 1) -> Placement:
    """Return the `index`-th of `count` equal slices along `dim`, of each of `segments` equal segments of that dim."""
    segment = shape[dim] // segments
    size = segment // count
    box_shape = (*shape[:dim], size, *shape[dim + 1 :])
    boxes = []
    for number in range(segments):
        start, at = [0] * len(shape), [0] * len(shape)
        start[dim], at[dim] = number * segment + index * size, number * size
        boxes.append(Box(tuple(start), tuple(at), box_shape))
    return Placement(shape, (*shape[:dim], size * segments, *shape[dim + 1 :]), tuple(boxes))


VOCABULARY = ("wte.weight", "lm_head.weight")
# (suffix, dim, segments): what tensor parallelism splits (Shoeybi et al., arXiv:1909.08053, section 3)
SPLIT = (
    ("attn.c_attn.weight", 1, 3),
    ("attn.c_attn.bias", 0, 3),
    ("attn.c_proj.weight", 0, 1),
    ("mlp.c_fc.weight", 1, 1),
    ("mlp.c_fc.bias", 0, 1),
    ("mlp.c_proj.weight", 0, 1),
    # factors of adapters: B's columns of a column parallel linear, A's rows of a row parallel one; the other is copied
    ("attn.q.lora_B", 1, 1),
    ("attn.k.lora_B", 1, 1),
    ("attn.v.lora_B", 1, 1),
    ("attn.c_attn.lora_B", 1, 3),
    ("attn.c_proj.lora_A", 0, 1),
    ("mlp.c_fc.lora_B", 1, 1),
    ("mlp.c_proj.lora_A", 0, 1),
)
FACTORS = ("lora_A", "lora_B")


def placements(model: ModelConfig, coordinates: Coordinates) -> dict[str, Placement]:
    """Return the local tensors of a process by their logical names, in the order of the model."""
    shapes = stats.tensor_shapes(model)
    return {
        name: placement(name, shape, model, coordinates)
        for name, shape in shapes.items()
        if holds(name, model, coordinates)
    }


def placement(name: str, shape: Shape, model: ModelConfig, coordinates: Coordinates) -> Placement:
    """Return the part of one tensor on a process of a stage that has it."""
    count = coordinates.parallel.tensor
    if name in VOCABULARY:
        padded = stats.padded_vocab_size(model)
        everything = whole(shape, padded)
        if not coordinates.parallel.vocab_parallel:
            return everything
        size = padded // count
        return everything.rows(coordinates.tensor * size, (coordinates.tensor + 1) * size)
    for suffix, dim, segments in SPLIT:
        if name.endswith(suffix):
            return tensor_slice(shape, dim, coordinates.tensor, count, segments)
    return whole(shape)


def is_split(name: str, coordinates: Coordinates) -> bool:
    """Return whether the processes of the tensor axis have different parts of a tensor, not copies."""
    if coordinates.parallel.tensor == 1:
        return False
    if name in VOCABULARY:
        return coordinates.parallel.vocab_parallel
    return any(name.endswith(suffix) for suffix, *_ in SPLIT)


def holds(name: str, model: ModelConfig, coordinates: Coordinates) -> bool:
    """Return whether a process's stage has a tensor; a tied embedding is on the first stage and the last."""
    if name.startswith("h."):
        return int(name.split(".")[1]) in coordinates.layers(model.num_layers)
    if name == "wte.weight":
        return coordinates.is_first_stage or (model.tie_embeddings and coordinates.is_last_stage)
    if name == "wpe.weight":
        return coordinates.is_first_stage
    return coordinates.is_last_stage


def owns(name: str, coordinates: Coordinates) -> bool:
    """Return True on the one process of each replica whose copy is counted in the gradient norm and in checkpoints."""
    if name == "wte.weight" and not coordinates.is_first_stage:
        return False
    return coordinates.tensor == 0 or is_split(name, coordinates)


def is_of_tokens(name: str) -> bool:
    """Return whether a tensor acts on the slice of tokens of sequence parallelism: layer norms, biases after a sum."""
    return "ln_" in name or name.endswith("c_proj.bias")


def is_copied_factor(name: str, coordinates: Coordinates) -> bool:
    """Return whether a tensor is the factor of an adapter that tensor parallelism copies."""
    return coordinates.parallel.tensor > 1 and name.endswith(FACTORS) and not is_split(name, coordinates)


def has_partial_gradient(name: str, coordinates: Coordinates) -> bool:
    """Return whether a process computes a part of a tensor's gradient, which is summed over the tensor axis."""
    of_tokens = coordinates.parallel.sequence_parallel and is_of_tokens(name)
    return of_tokens or is_copied_factor(name, coordinates)


def shard_rows(shape: Shape, coordinates: Coordinates, pads: bool = False) -> range | None:
    """Return the rows of a local tensor that a process keeps for the replicas that split it.

    Args:
        shape: of the local tensor.
        coordinates: of the process.
        pads: give every process equally many rows, the last ones beyond the tensor.

    Returns:
        None if the rows do not divide, and all processes keep all of them.
    """
    count = coordinates.parallel.shards
    if count == 1 or (shape[0] % count and not pads):
        return None
    size = -(-shape[0] // count)
    return range(coordinates.shard * size, (coordinates.shard + 1) * size)


@dataclass(frozen=True)
class Whole:
    """Whole logical tensors whose boxes are read."""

    tensors: Mapping[str, np.ndarray]

    def read(self, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """Return a box of a tensor."""
        return self.tensors[name][tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]


def read_ahead(parts: Mapping[str, Placement], tensors: Readable) -> Iterator[tuple[str, np.ndarray]]:
    """Return names and local tensors in order; the READ_THREADS that follow are read or drawn meanwhile."""
    with ThreadPoolExecutor(READ_THREADS) as threads:
        pending: deque[tuple[str, Future[np.ndarray]]] = deque()
        for name, part in parts.items():
            pending.append((name, threads.submit(part.read, tensors, name)))
            if len(pending) > READ_THREADS:
                first, values = pending.popleft()
                yield first, values.result()
        for name, values in pending:
            yield name, values.result()


def local_weights(weights: Mapping[str, np.ndarray], parts: Mapping[str, Placement]) -> dict[str, np.ndarray]:
    """Return the local tensors of whole logical ones (tests)."""
    return {name: part.read(Whole(weights), name) for name, part in parts.items()}
