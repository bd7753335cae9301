"""Every collective on every kind of group, between real processes; `python -m gpt2x.doctor.collectives` is one of them.

Process k of a group contributes k + 1, so that each result is known.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gpt2x.config import HardwareConfig, LaunchConfig, ParallelConfig, TrainConfig
from gpt2x.doctor.report import CheckFailedError
from gpt2x.parallel.mesh import Mesh
from gpt2x.runtime import launch
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.exits import run_and_leave
from gpt2x.runtime.role import read_role

SIZE = 3  # values that a process contributes
ASKED, ANSWER = "asked.json", "rank_{}.json"


def layout(processes: int) -> ParallelConfig:
    """Return a layout of so many processes with as many kinds of groups as they allow."""
    tensor = 2 if processes % 4 == 0 else 1
    return ParallelConfig(name="doctor", data=processes // tensor, tensor=tensor)


def exchange(hardware: HardwareConfig, processes: int, folder: Path) -> str:
    """Start processes that try all collectives, and compare what each of them got.

    Raises:
        CheckFailedError: with the first wrong result.
        RunError: a process failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ASKED).write_text(json.dumps([asdict(hardware), processes]), encoding="utf-8")
    config = TrainConfig(parallel=layout(processes), hardware=hardware)
    launch.launch([sys.executable, "-m", "gpt2x.doctor.collectives", str(folder)], config, folder)
    tried: set[str] = set()
    for rank in range(processes):
        answers = json.loads((folder / ANSWER.format(rank)).read_text(encoding="utf-8"))
        for name, got, expected in answers:
            tried.add(name)
            if not np.array_equal(got, expected):
                raise CheckFailedError(f"rank {rank}, {name}: {got} instead of {expected}")
    return f"{processes} processes: {', '.join(sorted(tried))}"


def answers(mesh: Mesh) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield what was tried on this process, what came out, and what should have."""
    from mindspore import Tensor

    from gpt2x.parallel.collectives import AllGather, AllReduce, ReduceScatter

    for kind, group in (("all", mesh.world), ("replicas", mesh.data), ("slices", mesh.tensor)):
        if group is None:
            continue
        share, total = float(group.index + 1), group.size * (group.size + 1) / 2
        x = Tensor(np.full((1, SIZE), share, np.float32))
        yield f"all-reduce of {kind}", AllReduce(group)(x).asnumpy()[0].tolist(), [total] * SIZE
        gathered = AllGather(group)(x).asnumpy()[:, 0].tolist()
        yield f"all-gather of {kind}", gathered, [index + 1.0 for index in range(group.size)]
        rows = Tensor(np.full((group.size, SIZE), share, np.float32))
        yield f"reduce-scatter of {kind}", ReduceScatter(group)(rows).asnumpy()[0].tolist(), [total] * SIZE
    yield "message", message(mesh), [float(mesh.rank // 2 * 2)] * SIZE


def message(mesh: Mesh) -> list[float]:
    """Send the rank of each even process to the odd one after it; return what was sent."""
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.parallel.mesh import PointToPoint

    values = Tensor(np.full(SIZE, mesh.rank, np.float32))
    if mesh.rank % 2:
        return PointToPoint().receive((SIZE,), ms.float32, mesh.rank - 1).asnumpy().tolist()
    PointToPoint().send(values, mesh.rank + 1)
    return values.asnumpy().tolist()


def work(folder: Path) -> None:
    """Try everything as one process, and write down what came out."""
    values, processes = json.loads((folder / ASKED).read_text(encoding="utf-8"))
    hardware = HardwareConfig(**values)
    os.environ.update(launch.timeouts(LaunchConfig(), hardware.device_target))
    role = read_role(os.environ)
    set_up_device(hardware, role.device_id)
    mesh = Mesh(layout(processes), hardware.device_target, role=role)
    tried = list(answers(mesh))
    (folder / ANSWER.format(mesh.rank)).write_text(json.dumps(tried), encoding="utf-8")
    mesh.agree()


if __name__ == "__main__":
    launch.end_with_launcher()
    launch.keep_to_cores()
    run_and_leave(lambda: work(Path(sys.argv[1])))
