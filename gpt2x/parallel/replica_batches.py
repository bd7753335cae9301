"""How the replicas of a layout divide the batches of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from gpt2x.config import ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.parallel.mesh import Mesh

T = TypeVar("T")
PARTS = 3  # float64 that hold a sum of so many values that none of its bits is lost


@dataclass(frozen=True)
class ReplicaBatches:
    """Replica r of n scores batches r, r + n, and so on; the processes of a replica score each batch together.

    Attributes:
        mesh: the processes; None: one process.
    """

    mesh: Mesh | None = None

    def local(self, batches: Iterable[T]) -> Iterator[T]:
        """Return the batches of this replica."""
        return (batch for batch, is_local in self.rounds(batches) if is_local)

    def rounds(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Return a batch of every round for this replica, and whether it is this replica's.

        In a last round without a batch for it, a replica takes part with another one's: replicas that split their
        weights gather them together.
        """
        coordinates = self.mesh.coordinates if self.mesh else Coordinates(ParallelConfig(name="single"), 0)
        batches = iter(batches)
        while turn := list(islice(batches, coordinates.parallel.data)):
            is_local = coordinates.data < len(turn)
            yield turn[coordinates.data if is_local else 0], is_local

    def total(self, values: float | Sequence[float] | np.ndarray) -> float:
        """Return the sum of all values of all replicas, rounded once; every process must call this.

        The result does not depend on how the values are divided among replicas, nor on their order.
        """
        if self.mesh is None:
            return exact_sum(values)
        parts = exact_parts(values if _counts(self.mesh.coordinates) else 0.0)
        return exact_sum(self.mesh.gather(np.array(parts)))

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Return the sums of the replicas' arrays of one shape, element by element; every process must call this."""
        if self.mesh is None:
            return values
        return self.mesh.gather(values if _counts(self.mesh.coordinates) else np.zeros_like(values)).sum(axis=0)

    def in_order(self, batches: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """Return the values of all replicas, (n,) fp64, in the order of batches of `batch_size` values.

        Every process must call this, with the values of its replica's batches.
        """
        local_values = np.concatenate([np.empty(0), *batches])
        if self.mesh is None:
            return local_values
        all_coordinates = [Coordinates(self.mesh.coordinates.parallel, rank) for rank in range(self.mesh.size)]
        lengths = self.mesh.gather(len(local_values)).astype(int)
        padded = self.mesh.gather(np.pad(local_values, (0, lengths.max() - len(local_values))))
        parts = {
            coordinates.data: padded[coordinates.rank, : lengths[coordinates.rank]]
            for coordinates in all_coordinates
            if _counts(coordinates)
        }
        starts = range(0, lengths.max(), batch_size)
        return np.concatenate([parts[data][start : start + batch_size] for start in starts for data in sorted(parts)])


def _counts(coordinates: Coordinates) -> bool:
    """Return whether this is the process of its replica that has the scores."""
    return coordinates.tensor == 0 and coordinates.is_last_stage


def exact_sum(values: float | Sequence[float] | np.ndarray) -> float:
    """Return the sum of all values, rounded once, in any order (Shewchuk's algorithm, Python's `math.fsum`)."""
    flat = np.ravel(np.asarray(values, np.float64))
    return math.fsum(flat.tolist()) if np.isfinite(flat).all() else float(flat.sum())


def exact_parts(values: float | Sequence[float] | np.ndarray) -> list[float]:
    """Return three numbers whose sum is that of all values: its nearest float64, and twice that of what is left."""
    flat = np.ravel(np.asarray(values, np.float64)).tolist()
    parts = [exact_sum(flat)]
    if not math.isfinite(parts[0]):
        return [*parts, 0.0, 0.0]
    while len(parts) < PARTS:
        parts.append(math.fsum([*flat, *(-part for part in parts)]))
    return parts


ALONE = ReplicaBatches()
