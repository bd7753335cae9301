"""How the replicas of a layout share prompts, and tell each other what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from gpt2x.parallel.agreement import from_all
from gpt2x.parallel.mesh import Mesh

T = TypeVar("T")


class Replicas:
    """Replicas that complete prompts in rounds, a share each, and exchange what is done after each round.

    An exchange goes through the processes' collectives, so it needs no disk that all of them see. It waits for the
    slowest.

    Args:
        mesh: the processes; None: one.

    Attributes:
        count: how many replicas there are.
    """

    def __init__(self, mesh: Mesh | None = None):
        self.mesh = mesh
        self.index, self.count = (mesh.coordinates.data, mesh.coordinates.parallel.data) if mesh else (0, 1)

    def rounds(self, shares: Sequence[T]) -> Iterator[T | None]:
        """This replica's share of each round; None where the last round has none for it."""
        for start in range(0, len(shares), self.count):
            yield shares[start + self.index] if start + self.index < len(shares) else None

    def exchange(self, own: object) -> list[Any]:
        """What the other replicas give at the same time; values of JSON."""
        if self.mesh is None or self.count == 1:
            return []
        coordinates = self.mesh.coordinates
        found = from_all(self.mesh, json.dumps(own) if coordinates.tensor == 0 else "")
        firsts = [coordinates.rank_at(data=data, tensor=0) for data in range(self.count) if data != coordinates.data]
        return [json.loads(found[rank]) for rank in firsts]


ALONE = Replicas()
