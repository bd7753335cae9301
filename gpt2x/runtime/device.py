"""The process-global state of MindSpore: device, mode, threads, random seed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2x import native
from gpt2x.config import HardwareConfig
from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.runtime.files import remove_empty

if TYPE_CHECKING:
    from mindspore import Tensor, nn

CPUSET = Path("/sys/fs/cgroup/cpuset/cpuset.cpus")


def set_up_device(hardware: HardwareConfig, device_id: int | None = None) -> None:
    """Choose device and mode, and open the compiled kernels from the main thread.

    Call it before `communication.init`: MindSpore documents this order. May be called again in one process, with other
    options too: nothing that it sets decides which operators compute. Each net asks `gpt2x.ops.backend_of(hardware)`
    for that.

    Args:
        hardware: the options.
        device_id: number of the device among those that the process sees (`Role.device_id`); None: the one of an
            earlier call, or MindSpore's choice.

    Raises:
        UserError: this MindSpore has no such device, the compiled kernels belong to a different version of
            gpt2x, or the processor has no bf16.
    """
    os.environ.setdefault("GLOG_v", "3")  # MindSpore logs only errors
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE if hardware.mode == "graph" else ms.PYNATIVE_MODE)
    current = ms.get_current_device()
    if device_id is None and current.device_target == hardware.device_target:
        device_id = current.device_id or None  # MindSpore rejects a different one later
    try:
        ms.set_device(hardware.device_target, device_id)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"hardware.device_target={hardware.device_target} (hardware={hardware.name}): this machine has no such "
            f"device ({str(error).strip().splitlines()[0]}); use hardware=cpu."
        ) from None
    if not hardware.is_cpu:
        set_up_ascend(hardware.usable_gb, hardware.jit_level, hardware.deterministic)
    if hardware.backend != "native":
        return
    if hardware.precision == "bf16":
        native.require_bf16()
    try:
        native.library()
    except native.MissingKernelsError as reason:
        console.warn(
            f"gpt2x's C++ kernels are not available ({reason}); training will be slower. "
            "Set hardware.native_kernels=false to silence this warning."
        )


@cache  # MindSpore rejects a second call of most of these
def set_up_ascend(pool_gb: float, jit_level: str, deterministic: bool) -> None:
    """Set what MindSpore takes before anything is allocated or communicates; docs/ascend.md has its documentation.

    Args:
        pool_gb: largest size of the memory pool.
        jit_level: O0 or O1, of every graph that is compiled as a Cell, as all of gpt2x's are.
        deterministic: whether operators and collectives repeat every float. False leaves HCCL_DETERMINISTIC as it is.
    """
    import mindspore as ms

    ms.runtime.set_memory(max_size=f"{pool_gb:g}GB")
    ms.set_context(jit_config={"jit_level": jit_level})
    if deterministic:
        ms.set_deterministic(True)


@cache
def bind_cores() -> None:
    """Have MindSpore bind its threads to the cores that it finds near the device.

    Call it after `communication.init`: it divides the cores by the processes of this machine, which it does not know
    before (MindSpore 2.10, `runtime/thread_bind_core.py`).
    """
    import mindspore as ms

    if not CPUSET.exists():
        console.warn(
            f"hardware.bind_cores=true has no effect here: MindSpore 2.10 reads the cores from {CPUSET}, which is "
            "missing (cgroup v2)."
        )
        return
    ms.runtime.set_cpu_affinity(True)


@contextmanager
def compiler_dumps(folder: Path) -> Iterator[None]:
    """Have MindSpore write a graph that it cannot compile into `folder`, and not into the working directory.

    A signal that interrupts the compiler makes such a file, too; nobody needs that one.
    """
    os.environ["MS_OM_PATH"] = str(folder.absolute())  # MindSpore appends rank_N/om
    try:
        yield
    except KeyboardInterrupt:
        for dump in folder.glob("rank_*/om"):
            shutil.rmtree(dump.parent, ignore_errors=True)
        remove_empty(folder)
        raise


def compile_graph(cell: nn.Cell, *inputs: Tensor | None) -> None:
    """Compile a cell, so that its first call with such inputs takes no longer than others; PyNative has no graphs."""
    import mindspore as ms

    if ms.get_context("mode") == ms.GRAPH_MODE:
        cell.compile(*inputs)


def has_device(device_target: str) -> bool:
    """Return whether this machine shows a device of this kind; MindSpore is not asked, since its import takes seconds.

    Ascend's driver makes /dev/davinci0 and so on, and /dev/davinci_manager; containers get those of their devices.
    """
    return device_target == "CPU" or any(Path("/dev").glob("*davinci*"))


def visible_devices() -> list[int] | None:
    """Return the devices that ASCEND_RT_VISIBLE_DEVICES shows to this process; None if it is not set.

    CANN reads it up to the first entry that is no number, and numbers the devices anew from 0.
    """
    text = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    return [int(entry) for entry in takewhile(str.isdigit, text.split(","))] if text else None


def measure_peak_tflops(
    precision: str = "fp32", seconds: float = 0.4, sizes: tuple[int, ...] = (512, 1024, 2048)
) -> float:
    """Return the best rate of products of square matrices here, in TFLOP/s.

    They are MindSpore's in fp32, and in bf16 those of gpt2x's kernels, with the time that rounding the operands takes.
    The largest matrices are the fastest on an idle machine. On a busy one the smallest are, since a short product may
    end before other work interrupts it.
    """
    from mindspore import Tensor, ops

    product, best = native.product("linear", "bf16") if precision == "bf16" else ops.MatMul(), 0.0
    for size in sizes:
        a = Tensor(np.ones((size, size), np.float32))
        product(a, a).asnumpy()
        end = time.perf_counter() + seconds / len(sizes)
        while True:
            start = time.perf_counter()
            product(a, a)[0, 0].asnumpy()
            best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e12)
            if time.perf_counter() > end:
                break
    return best
