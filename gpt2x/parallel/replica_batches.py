"""How the replicas of a layout share the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from gpt2x.config.layout import Coordinates
from gpt2x.parallel.mesh import Mesh

T = TypeVar("T")


@dataclass(frozen=True)
class ReplicaBatches:
    """Replicas score batches in turns; the processes of a replica score each together.

    Attributes:
        mesh: the processes; None: one.
    """

    mesh: Mesh | None = None

    def own(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of this replica."""
        if self.mesh is None:
            return iter(batches)
        coordinates = self.mesh.coordinates
        return islice(batches, coordinates.data, None, coordinates.parallel.data)

    def total(self, value: float) -> float:
        """The sum of the replicas' values, added in float64; every process asks for it."""
        if self.mesh is None:
            return value
        return float(self.mesh.gather(value if _counts(self.mesh.coordinates) else 0.0).sum())

    def in_order(self, batches: Sequence[np.ndarray], batch_size: int) -> np.ndarray:
        """What all replicas found, (n,) fp64: batch after batch, each of `batch_size` values but the last.

        Every process asks for it, with the batches of its replica.
        """
        found = np.concatenate([np.empty(0), *batches])
        if self.mesh is None:
            return found
        all_coordinates = [Coordinates(self.mesh.coordinates.parallel, rank) for rank in range(self.mesh.size)]
        lengths = self.mesh.gather(len(found)).astype(int)
        padded = self.mesh.gather(np.pad(found, (0, lengths.max() - len(found))))
        parts = {
            coordinates.data: padded[coordinates.rank, : lengths[coordinates.rank]]
            for coordinates in all_coordinates
            if _counts(coordinates)
        }
        starts = range(0, lengths.max(), batch_size)
        return np.concatenate([parts[data][start : start + batch_size] for start in starts for data in sorted(parts)])


def _counts(coordinates: Coordinates) -> bool:
    """Whether it is the process of its replica that knows the scores."""
    return coordinates.tensor == 0 and coordinates.is_last_stage


ALONE = ReplicaBatches()
