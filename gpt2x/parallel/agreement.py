"""Texts and counts that processes exchange, so that all decide alike."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from gpt2x.errors import UserError
from gpt2x.parallel.collectives import AllReduce, Group
from gpt2x.parallel.mesh import Mesh

MIN_BYTES = 1024  # of a message; its size is a power of two, since each size is compiled as a graph
COUNTS = 64  # numbers in a message, or a multiple


def from_all(mesh: Mesh, text: str) -> list[str]:
    """Return each process's text, on every process, in the order of ranks."""
    if mesh.world is None:
        return [text]
    content = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(mesh.gather(float(len(content)))).astype(int)
    message = np.zeros(max(MIN_BYTES, 1 << (int(ends[-1]) - 1).bit_length()), np.float32)
    message[ends[mesh.rank] - len(content) : ends[mesh.rank]] = content
    gathered = mesh.total(message).astype(np.uint8)
    return [part.tobytes().decode() for part in np.split(gathered[: ends[-1]], ends[:-1])]


def from_main(mesh: Mesh, text: str) -> str:
    """Return the main process's text, on every process; the texts of the others are ignored."""
    return from_all(mesh, text if mesh.is_main else "")[0]


def require_same(mesh: Mesh, what: str, value: str) -> None:
    """Raise UserError if this process's value is not the main process's.

    Raises:
        UserError: with `what` and both values.
    """
    rank0_value = from_main(mesh, value)
    if value != rank0_value:
        raise UserError(
            f"{what} is {value} for rank {mesh.rank} but {rank0_value} for rank 0. Give all processes the same files, "
            "and change none of them meanwhile."
        )


class FromFirst:
    """Sends counts from the first process of a group to the others; exact below 2^24. Outside graphs."""

    def __init__(self, group: Group | None):
        self.is_alone, self.is_first = group is None, group is None or group.index == 0
        self.sum = AllReduce(group)

    def __call__(self, values: list[int]) -> list[int]:
        """Return the first process's values; the others pass as many values, which are ignored."""
        if self.is_alone:
            return values
        message = np.zeros(-(-len(values) // COUNTS) * COUNTS, np.float32)
        message[: len(values)] = values if self.is_first else 0
        return self.sum(Tensor(message)).asnumpy()[: len(values)].astype(int).tolist()
