"""How the replicas of a layout share the batches of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from gpt2x.parallel.mesh import Mesh

T = TypeVar("T")


@dataclass(frozen=True)
class Turns:
    """Replicas score batches in turns; the processes of a replica score each together.

    Attributes:
        mesh: the processes; None: one.
    """

    mesh: Mesh | None = None

    def own(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of this replica."""
        if self.mesh is None:
            return iter(batches)
        place = self.mesh.place
        return islice(batches, place.data, None, place.parallel.data)

    def total(self, value: float) -> float:
        """The sum of the replicas' values, added in float64; every process asks for it."""
        if self.mesh is None:
            return value
        place = self.mesh.place
        counts = place.tensor == 0 and place.is_last_stage  # one process of each replica knows the scores
        return float(self.mesh.gather(value if counts else 0.0).sum())


ALONE = Turns()
