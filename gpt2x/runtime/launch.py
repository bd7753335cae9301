"""Start the processes of a layout (docs/design/launch.md; imports no mindspore)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gpt2x.config import CommonConfig, LaunchConfig
from gpt2x.config.layout import world_size
from gpt2x.errors import UserError
from gpt2x.runtime import clock
from gpt2x.runtime.processes import World
from gpt2x.runtime.role import LAUNCHER, Role

RUN_DIR = "GPT2X_RUN_DIR"  # in a worker: its run directory
CORES = "GPT2X_CORES"  # in a worker on the CPU: its cores, separated by commas
LOGS = "logs"  # in the run directory

FAREWELL_S = 30.0  # other nodes may still need the scheduler; devices are released
SPARE_S = 30  # from the launcher's limit of a wait to MindSpore's
HCCL_CONNECT_RANGE_S = (120, 7200)  # CANN's documentation of HCCL_CONNECT_TIMEOUT
KNOCK_S = 0.1  # between two attempts to reach the scheduler
PR_SET_PDEATHSIG = 1  # prctl(2)


# ---- in a process that was started here


def require_worker_num(config: CommonConfig, role: Role) -> None:
    """Raise UserError if the user's msrun starts more or fewer workers than the layout has."""
    size = world_size(config.parallel)
    if role.is_under_msrun and role.msrun_workers != size:
        raise UserError(
            f"parallel={config.parallel.name} has {size} processes, but msrun was given "
            f"--worker_num={role.msrun_workers}: use msrun --worker_num={size}, or a layout of {role.msrun_workers}."
        )


def timeouts(config: LaunchConfig, device_target: str) -> dict[str, str]:
    """Return the environment variables that bound how long processes wait for each other; a worker sets them.

    These limits are later than the launcher's, which knows who is late.
    """
    seconds = config.timeout_s + SPARE_S
    if device_target == "CPU":
        return {"MS_CPU_COMM_OP_TIMEOUT": str(seconds)}
    least, most = HCCL_CONNECT_RANGE_S
    return {"HCCL_EXEC_TIMEOUT": str(seconds), "HCCL_CONNECT_TIMEOUT": str(min(max(seconds, least), most))}


def end_with_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, however that happens (Linux)."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # the launcher died before prctl
        os._exit(1)


# ---- starting


def config_path(node_rank: int, run_dir: Path) -> Path:
    """Return the file with the configuration of a node's workers; node 0's is the run's own."""
    return run_dir / LOGS / f"node_{node_rank}.yaml" if node_rank else run_dir / "config.yaml"


def launch(worker: Sequence[str], config: CommonConfig, run_dir: Path) -> None:
    """Run this node's processes of a layout to their end; none survives, whatever happens.

    Args:
        worker: the command of each worker.
        config: the layout, and the address where its processes meet.
        run_dir: the run directory.

    Raises:
        UserError: the scheduler's port is taken, or its address is not this machine's.
        RunError: a process failed; its error has been shown.
        Interrupted: a signal asked for the end, and the processes have saved what they had.
    """
    size, settings = world_size(config.parallel), config.launch
    variables = {LAUNCHER: str(os.getpid()), RUN_DIR: str(run_dir), clock.STARTED: clock.start()}
    is_alone = config.hardware.is_cpu and settings.num_nodes == 1
    with World(0.0 if is_alone else FAREWELL_S, settings.timeout_s, size) as world:
        if size == 1:
            world.start("rank 0", worker, variables, log=None)
        else:
            logs = run_dir / LOGS
            logs.mkdir(parents=True, exist_ok=True)
            variables |= join_cluster(world, size, settings, variables, logs / "scheduler.log")
            per_node = size // settings.num_nodes
            for local in range(per_node):
                rank = settings.node_rank * per_node + local
                log = logs / f"rank_{rank}.log" if rank else None
                shared = cores(local, per_node) if config.hardware.is_cpu else {}
                world.start(f"rank {rank}", worker, variables | worker_variables(rank, local) | shared, log)
        world.wait()


def join_cluster(
    world: World, size: int, settings: LaunchConfig, variables: dict[str, str], log: Path
) -> dict[str, str]:
    """Start the scheduler on node 0; return the variables of MindSpore's dynamic cluster that its workers share."""
    address = resolve(settings.address or "127.0.0.1")
    if settings.node_rank:
        return cluster(size, address, settings.port, settings.timeout_s + SPARE_S)
    with reserve(address, settings.port) as reserved:
        shared = cluster(size, address, reserved.getsockname()[1], settings.timeout_s + SPARE_S)
        command = [sys.executable, "-m", "gpt2x.runtime.scheduler", str(reserved.fileno())]
        role = {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
        world.start("the scheduler", command, variables | shared | role, log, (reserved.fileno(),))
    return shared


def cluster(size: int, address: str, port: int | None, timeout_s: int) -> dict[str, str]:
    """Return the variables that all processes of the cluster share, as msrun sets them."""
    return {
        "MS_WORKER_NUM": str(size),
        "MS_SCHED_HOST": address,
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": str(timeout_s),
        "RANK_SIZE": str(size),
    }


def worker_variables(rank: int, local: int) -> dict[str, str]:
    """Return the variables of one worker: its rank, and its number on its node."""
    return {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank), "RANK_ID": str(rank), "DEVICE_ID": str(local)}


def cores(local: int, per_node: int) -> dict[str, str]:
    """Return a CPU worker's variables: its cores, or a single thread if there are fewer cores than workers."""
    available = sorted(os.sched_getaffinity(0))
    count = len(available) // per_node
    if count == 0:
        return {"OMP_NUM_THREADS": "1"}
    worker_cores = available[local * count : (local + 1) * count]
    return {"OMP_NUM_THREADS": str(count), CORES: ",".join(map(str, worker_cores))}


def await_scheduler() -> None:
    """Wait in a worker until the scheduler listens.

    Once MindSpore's first attempt has failed, its further attempts fail for up to half a minute (2.10), because each
    allows a connection less time than it needs.
    """
    address = os.environ["MS_SCHED_HOST"], int(os.environ["MS_SCHED_PORT"])
    deadline = time.monotonic() + float(os.environ.get("MS_TOPO_TIMEOUT", 0))
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1.0):
            return
        time.sleep(KNOCK_S)


def keep_to_cores() -> None:
    """Restrict this process to the cores that the launcher chose; call it before threads are started."""
    if CORES in os.environ:
        os.sched_setaffinity(0, {int(core) for core in os.environ[CORES].split(",")})


def resolve(address: str) -> str:
    """Return the IP address of a host name; MindSpore accepts no names.

    Raises:
        UserError: the name has no address.
    """
    try:
        return str(socket.getaddrinfo(address.strip("[]"), None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UserError(
            f"launch.address={address} cannot be resolved ({error.strerror}); give node 0's name or IP address."
        ) from None


def reserve(address: str, port: int | None) -> socket.socket:
    """Bind `port`, or a free one, until the scheduler listens there.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    reserved = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier run may linger on it
    try:
        reserved.bind((address, port or 0))
    except OSError as error:
        reserved.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(
                f"launch.address={address} is not an address of this machine, but launch.node_rank=0 starts the "
                "scheduler here; give this machine's address, or this node's launch.node_rank."
            ) from None
        raise UserError(
            f"launch.port={port} cannot be used on {address} ({error.strerror}); give a different port, or "
            "launch.port=null for a free one (on a single node)."
        ) from None
    return reserved
