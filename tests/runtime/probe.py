"""Processes for test_launch.py: `launch DIRECTORY WORLD MODE` starts workers, `work WORLD MODE` is one.

Only the mode `finish` imports MindSpore: how a launch fails or is interrupted does not depend on what its workers do.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpt2x.config import LaunchConfig, ParallelConfig, TrainConfig
from gpt2x.errors import RunError, UserError
from gpt2x.runtime import heartbeat, launch
from gpt2x.runtime.exits import guarded, run_and_leave
from gpt2x.runtime.interrupt import Interrupted, catch
from gpt2x.runtime.role import Role, read_role


def start(directory: Path, world: int, mode: str, settings: LaunchConfig) -> None:
    catch()
    config = TrainConfig(parallel=ParallelConfig(name=f"dp{world}", data=world), launch=settings)
    launch.launch([sys.executable, "-m", "tests.runtime.probe", "work", str(world), mode], config, directory)


def by_mindspore(world: int, role: Role) -> Callable[[int], None]:
    """Return what exchanges the ranks by MindSpore's collectives."""
    os.environ.setdefault("GLOG_v", "3")
    os.environ.update(launch.timeouts(LaunchConfig(), "CPU"))
    import mindspore as ms

    from gpt2x.parallel.agreement import from_main
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.runtime.device import set_up_device
    from tests.support.models import CPU

    set_up_device(CPU, role.device_id)
    mesh = Mesh(ParallelConfig(name="probe", data=world), role=role)
    assert mesh.rank == role.rank
    assert tuple(ms.get_current_device()) == ("CPU", role.rank), "each process has the device of its number"
    assert from_main(mesh, f"größer {mesh.rank}") == "größer 0"

    def exchange(_: int) -> None:
        assert list(mesh.gather(mesh.rank + 0.1)) == [rank + 0.1 for rank in range(world)]

    return exchange


def by_file(rank: int, file: Path) -> Callable[[int], None]:
    """Return what waits until rank 0 has completed as many steps."""

    def exchange(steps: int) -> None:
        with heartbeat.exchange():
            while rank and (not file.exists() or int(file.read_text() or 0) < steps):
                time.sleep(0.01)

    return exchange


def fall_asleep() -> None:
    heartbeat.does("counting sheep")
    time.sleep(1000)


def work(world: int, mode: str) -> None:
    """Take some steps with the others, or until a signal; fail as `mode` says. Rank 0 writes down what it does."""
    catch(is_launched=True)
    role, directory = read_role(os.environ), Path(os.environ[launch.RUN_DIR])
    if mode == "mistake":
        raise UserError("key=1 must be 2")
    rank = role.rank
    exchange = by_mindspore(world, role) if mode == "finish" else by_file(rank, directory / "step")
    print(f"rank {rank} begins", flush=True)
    step = 0
    try:
        while mode != "finish" or step < 5:
            exchange(step)
            step += 1
            if rank == 0:
                (directory / "step").write_text(str(step))
            if mode == "raise" and rank == 1 and step == 3:
                raise RuntimeError("boom")
            if mode == "sleep" and rank == 0 and step == 3:
                fall_asleep()
            time.sleep(0.05 * (rank == 0))
    except Interrupted as interrupted:
        (directory / f"interrupted_{rank}").write_text(str(interrupted))
        raise RunError(status=interrupted.status) from None
    print(f"rank {rank} is done", flush=True)


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    if kind == "work":
        launch.end_with_launcher()
        run_and_leave(lambda: work(int(arguments[0]), arguments[1]))
    directory, world, mode, *keys = arguments
    values = {key: int(value) if value.isdigit() else value for key, _, value in (k.partition("=") for k in keys)}
    sys.exit(guarded(lambda: start(Path(directory), int(world), mode, LaunchConfig(**values))))
