"""How the replicas of a layout share prompts, and exchange their completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from gpt2x.parallel.agreement import from_all
from gpt2x.parallel.mesh import Mesh

T = TypeVar("T")


class Replicas:
    """Replicas that complete prompts in rounds, one part per replica, and exchange their completions after each round.

    An exchange uses the processes' collectives, so it needs no shared disk. It waits for the slowest replica.

    Args:
        mesh: the processes; None for one process.

    Attributes:
        index: the number of this replica.
        count: the number of replicas.
    """

    def __init__(self, mesh: Mesh | None = None):
        self.mesh = mesh
        self.index, self.count = (mesh.coordinates.data, mesh.coordinates.parallel.data) if mesh else (0, 1)

    def rounds(self, parts: Sequence[T]) -> Iterator[T | None]:
        """Yield this replica's part of each round; None if the last round has none for it."""
        for start in range(0, len(parts), self.count):
            yield parts[start + self.index] if start + self.index < len(parts) else None

    def exchange(self, values: object) -> list[Any]:
        """Return what the other replicas pass in the same call; values must be JSON."""
        if self.mesh is None or self.count == 1:
            return []
        coordinates = self.mesh.coordinates
        texts = from_all(self.mesh, json.dumps(values) if coordinates.tensor == 0 else "")
        firsts = [coordinates.rank_at(data=data, tensor=0) for data in range(self.count) if data != coordinates.data]
        return [json.loads(texts[rank]) for rank in firsts]


ALONE = Replicas()
