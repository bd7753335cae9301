"""What processes decide, told to each other."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from gpt2x.errors import UserError
from gpt2x.parallel.collectives import AllReduce, Group
from gpt2x.parallel.mesh import Mesh

LEAST_LETTERS = 1024  # of a message; its size is a power of two, since each size is a graph
COUNTS = 64  # of a message of numbers, or a multiple


def from_all(mesh: Mesh, text: str) -> list[str]:
    """Each process' text, on every process, in the order of ranks."""
    if mesh.world is None:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(mesh.gather(float(len(content)))).astype(int)
    letters = np.zeros(max(LEAST_LETTERS, 1 << (int(ends[-1]) - 1).bit_length()), np.float32)
    letters[ends[mesh.rank] - len(content) : ends[mesh.rank]] = content
    found = mesh.all_reduce(Tensor(letters)).asnumpy().astype(np.uint8)
    return [part.tobytes().decode() for part in np.split(found[: ends[-1]], ends[:-1])]


def from_main(mesh: Mesh, text: str) -> str:
    """The main process' text, on every process; what the others give does not count."""
    return from_all(mesh, text if mesh.is_main else "")[0]


def require_same(mesh: Mesh, what: str, value: str) -> None:
    """Refuse to go on where this process' value is not the main one's.

    Raises:
        UserError: naming `what` and both values.
    """
    told = from_main(mesh, value)
    if value != told:
        raise UserError(
            f"{what} is {value} for rank {mesh.rank} but {told} for rank 0: give all processes the same files, which "
            "nobody changes meanwhile"
        )


class FromFirst:
    """Counts that the first process of a group has, told to the others; exact below 2^24. Outside graphs."""

    def __init__(self, group: Group | None):
        self.is_alone, self.is_first = group is None, group is None or group.index == 0
        self.sum = AllReduce(group)

    def __call__(self, values: list[int]) -> list[int]:
        """The first process' values; of the others' only their number matters, which is the same."""
        if self.is_alone:
            return values
        told = np.zeros(-(-len(values) // COUNTS) * COUNTS, np.float32)
        told[: len(values)] = values if self.is_first else 0
        return self.sum(Tensor(told)).asnumpy()[: len(values)].astype(int).tolist()
