"""The processes of a run as a mesh of axes: MindSpore's groups, and exchanges between the hosts of all ranks."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor

from gpt2x.config import ParallelConfig
from gpt2x.config.layout import Coordinates, world_size
from gpt2x.errors import UserError
from gpt2x.parallel.collectives import AllReduce, Group
from gpt2x.runtime import heartbeat, launch
from gpt2x.runtime.role import Role

WORLD = "hccl_world_group"  # MindSpore's name of all processes, on the CPU as well


class Mesh:
    """This process among all of a run, after the device is set up; meshes of several layouts of one size can coexist.

    Attributes:
        coordinates: data, tensor and stage numbers of this process.
        groups: the ranks of each group of this process, by its axis.
        rank: its number, 0 in a run of one process.
        role: how this process was started.
        size: number of processes.
        world: the group of all of them. A group is None if it would have one process.
        data: the replicas: the same layers and tensor slice, other rows of the batch.
        tensor: the processes that compute the same layers together.
        shard: the replicas among which optimizer states are sharded.
        replica: the replicas that keep the same shard of the optimizer states.
        norm: the processes that together have every gradient once.
        embedding: the first stage and the last, which both have a tied embedding.
    """

    def __init__(
        self,
        parallel: ParallelConfig,
        device_target: str = "CPU",
        rank: int | None = None,
        role: Role = Role(),
    ):
        """Join the other processes, unless the layout has only one.

        Args:
            parallel: the layout.
            device_target: CPU or Ascend.
            rank: set by tests that compile for a device that is not there: no process is joined.
            role: how this process was started.

        Raises:
            UserError: the number of started processes is not the layout's.
        """
        self.role = role
        self.size, self.device_target = world_size(parallel), device_target
        self.rank = rank if rank is not None else join(self.size, device_target)
        self.coordinates = coordinates = Coordinates(parallel, self.rank)
        shards = parallel.shards

        def is_same(other: Coordinates, *axes: str) -> bool:
            return all(getattr(other, axis) == getattr(coordinates, axis) for axis in axes)

        def same_set(other: Coordinates) -> bool:
            return other.data // shards == coordinates.data // shards

        self.groups: dict[str, list[int]] = {}
        self.world = self.group("world", lambda other: True)
        self.data = self.group("data", lambda other: is_same(other, "tensor", "stage"))
        self.tensor = self.group("tensor", lambda other: is_same(other, "data", "stage"))
        self.shard = self.replica = None
        self.norm = self.group("norm", same_set)
        if shards > 1:
            self.shard = self.group("shard", lambda other: is_same(other, "tensor", "stage") and same_set(other))
            self.replica = self.group("replica", lambda other: is_same(other, "tensor", "stage", "shard"))
        self.embedding = None
        if parallel.pipeline > 1 and (coordinates.is_first_stage or coordinates.is_last_stage):
            self.embedding = self.group(
                "embedding",
                lambda other: is_same(other, "data", "tensor") and (other.is_first_stage or other.is_last_stage),
            )
        self.all_reduce = AllReduce(self.world)

    def group(self, axis: str, belongs: Callable[[Coordinates], bool]) -> Group | None:
        """Return the group of the ranks that belong; each of them must call this, in the same order."""
        ranks = [rank for rank in range(self.size) if belongs(Coordinates(self.coordinates.parallel, rank))]
        if len(ranks) == 1:
            return None
        self.groups[axis] = ranks
        if len(ranks) == self.size:
            name = WORLD
        else:
            # MindSpore keeps groups by name for the whole process, and the groups of two layouts can differ in their
            # middle ranks only
            name = f"{len(ranks)}-{axis}-{ranks[0]}-{ranks[-1]}-{zlib.crc32(bytes(str(ranks), 'ascii')):08x}"
            from mindspore.communication import create_group

            create_group(name, ranks)
        return Group(name, ranks.index(self.rank), len(ranks), self.device_target)

    @property
    def is_main(self) -> bool:
        """Return whether this process talks to the user, the tracker and the disk."""
        return self.rank == 0

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of all ranks' fp32 arrays, on every rank; none continues before all have called this."""
        if self.world is None:
            return values
        with heartbeat.exchange():
            return self.all_reduce(Tensor(values)).asnumpy()

    def gather(self, value: float | np.ndarray) -> np.ndarray:
        """Return each rank's value, exactly: fp64 (size,), or (size, *shape) for arrays of one shape."""
        rest = np.array(value, np.float64)
        slots = np.zeros((self.size, 3, *rest.shape), np.float32)  # an fp64 is the sum of three fp32, here with zeros
        for index in range(3):
            slots[self.rank, index] = part = rest.astype(np.float32)
            rest = np.subtract(rest, part, out=np.zeros_like(rest), where=np.isfinite(part))
        return self.total(slots).astype(np.float64).sum(axis=1)

    def agree(self, holds: bool = True) -> bool:
        """Return whether `holds` is true on all ranks; none continues before all have called this."""
        return bool(self.gather(float(holds)).all())


def join(size: int, device_target: str) -> int:
    """Become one of the processes of the run; return the rank.

    Raises:
        UserError: the number of processes is not that of the layout.
    """
    if size == 1:
        return 0
    started, rank = connect(device_target)
    if started != size:
        raise UserError(f"{started} processes were started, but the layout has {size}. Start as many.")
    return rank


@cache
def connect(device_target: str) -> tuple[int, int]:
    """Meet the other processes, once per process; return their number and the rank of this one."""
    import mindspore.communication as communication

    with heartbeat.exchange():
        launch.await_scheduler()
        communication.init()
    size, rank = communication.get_group_size(), communication.get_rank()
    if device_target == "CPU":  # point-to-point messages miss the world's group otherwise (MindSpore 2.10)
        communication.create_group(WORLD, list(range(size)))
    return size, rank


class PointToPoint:
    """Messages between two processes, outside graphs; they arrive in the order in which they were sent."""

    def send(self, x: Tensor, rank: int) -> None:
        """Send `x` to another process."""
        from mindspore.mint import distributed

        with heartbeat.message("a message to", rank):
            distributed.send(x, dst=rank, group=WORLD)

    def receive(self, shape: tuple[int, ...], dtype: ms.dtype.Type, rank: int) -> Tensor:
        """Wait for a tensor of this shape and dtype from another process."""
        from mindspore.mint import distributed

        x = Tensor(np.zeros(shape, ms.dtype_to_nptype(dtype)))
        with heartbeat.message("a message from", rank):
            distributed.recv(x, src=rank, group=WORLD)
        return x
