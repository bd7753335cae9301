"""Every collective on every kind of group, between real processes; `python -m gpt2x.doctor.collectives` is one of them.

Process k of a group contributes k + 1, so that each result is known. They are tried in fp32 and in the precision of the
hardware, in which gathered weights, gradients of blocks and messages of stages travel.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gpt2x.config import HardwareConfig, LaunchConfig, ParallelConfig, TrainConfig
from gpt2x.doctor.report import CheckFailedError
from gpt2x.ops import DTYPES
from gpt2x.parallel.mesh import Mesh
from gpt2x.runtime import launch
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.exits import run_and_leave
from gpt2x.runtime.role import read_role

if TYPE_CHECKING:
    from mindspore import Tensor

    from gpt2x.parallel.collectives import Group

SIZE = 3  # values that a process contributes
ASKED, ANSWER = "asked.json", "rank_{}.json"


def layouts(processes: int) -> list[ParallelConfig]:
    """Return layouts of an even number of processes, at least 2: together they have all kinds of groups that fit."""
    half = processes // 2
    stages = half if half > 1 else 2
    return [
        ParallelConfig(name="doctor", data=processes, zero_stage=1, optimizer_shards=max(half, 2)),
        ParallelConfig(name="doctor", data=half, tensor=2),
        ParallelConfig(name="doctor", data=processes // stages, pipeline=stages),
    ]


class Answer(NamedTuple):
    """What a process got of one collective, and what it should have got."""

    action: str
    place: str
    dtype: str
    got: list[float]
    expected: list[float]


def exchange(hardware: HardwareConfig, processes: int, folder: Path) -> str:
    """Start processes that try all collectives, and compare what each of them got.

    Raises:
        CheckFailedError: with the first wrong result.
        RunError: a process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ASKED).write_text(json.dumps([asdict(hardware), processes]), encoding="utf-8")
    config = TrainConfig(parallel=layouts(processes)[0], hardware=hardware)
    launch.launch([sys.executable, "-m", "gpt2x.doctor.collectives", str(folder)], config, folder)
    answers: list[Answer] = []
    for rank in range(processes):
        answers += (Answer(*each) for each in json.loads((folder / ANSWER.format(rank)).read_text(encoding="utf-8")))
        for action, place, dtype, got, expected in answers:
            if not np.array_equal(got, expected):
                raise CheckFailedError(f"rank {rank}, {action} ({place}, {dtype}): {got} instead of {expected}")
    actions, places, dtypes = (", ".join(dict.fromkeys(each[index] for each in answers)) for index in range(3))
    return f"{processes} processes, {dtypes}: {actions} ({places})"


def answers_of(mesh: Mesh, dtype: str) -> Iterator[Answer]:
    """Yield each collective of each group of this process, and the messages of stages."""
    for kind in ("world", "data", "shard", "replica", "tensor", "norm", "embedding"):
        group = getattr(mesh, kind)
        if group is not None:
            yield from group_answers(kind, group, dtype)
    yield from stage_answers(mesh, dtype)


def group_answers(kind: str, group: Group, dtype: str) -> Iterator[Answer]:
    """Yield the collectives of one group."""
    from gpt2x.parallel.collectives import AllGather, AllReduce, ReduceScatter

    share, total = group.index + 1, group.size * (group.size + 1) / 2
    x = constant((1, SIZE), share, dtype)
    yield Answer("all-reduce", kind, dtype, values(AllReduce(group)(x)), [total] * SIZE)
    gathered = [index + 1.0 for index in range(group.size) for _ in range(SIZE)]
    yield Answer("all-gather", kind, dtype, values(AllGather(group)(x)), gathered)
    rows = constant((group.size, SIZE), share, dtype)
    yield Answer("reduce-scatter", kind, dtype, values(ReduceScatter(group)(rows)), [total] * SIZE)


def stage_answers(mesh: Mesh, dtype: str) -> Iterator[Answer]:
    """Yield the messages of pipeline stages, in the order of an update: activations onwards, gradients back."""
    from gpt2x.parallel.mesh import PointToPoint

    place, messages = mesh.coordinates, PointToPoint()
    before = None if place.is_first_stage else place.rank_at(stage=place.stage - 1)
    after = None if place.is_last_stage else place.rank_at(stage=place.stage + 1)
    rank_number = constant((SIZE,), mesh.rank, dtype)

    def receive(name: str, rank: int) -> Answer:
        received = messages.receive((SIZE,), DTYPES[dtype], rank)
        return Answer("message", name, dtype, values(received), [float(rank)] * SIZE)

    if before is not None:
        yield receive("from the stage before", before)
    if after is not None:
        messages.send(rank_number, after)
        yield receive("from the stage after", after)
    if before is not None:
        messages.send(rank_number, before)


def constant(shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
    """Return a tensor of one value."""
    import mindspore as ms

    return ms.Tensor(np.full(shape, value, np.float32)).astype(DTYPES[dtype])


def values(tensor: Tensor) -> list[float]:
    """Return the values of a tensor, row by row."""
    import mindspore as ms

    return tensor.astype(ms.float32).asnumpy().ravel().tolist()


def work(folder: Path) -> None:
    """Try everything as one process, and write down what came out."""
    values, processes = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    hardware = HardwareConfig(**values)
    os.environ.update(launch.timeouts(LaunchConfig(), hardware.device_target))
    role = read_role(os.environ)
    set_up_device(hardware, role.device_id)
    tried: list[Answer] = []
    for parallel in layouts(processes):
        mesh = Mesh(parallel, hardware.device_target, role=read_role(os.environ))
        for dtype in dict.fromkeys(("fp32", hardware.tensor_precision)):
            tried += answers_of(mesh, dtype)
    (folder / ANSWER.format(mesh.rank)).write_text(json.dumps(tried), encoding="utf-8")
    mesh.agree()


if __name__ == "__main__":
    launch.end_with_launcher()
    launch.keep_to_cores()
    run_and_leave(lambda: work(Path(sys.argv[1])))
