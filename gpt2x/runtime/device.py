"""The process-global state of MindSpore: device, mode, threads, random seed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from gpt2x import native
from gpt2x.config import HardwareConfig
from gpt2x.errors import UserError
from gpt2x.runtime.console import console


def set_up_device(hardware: HardwareConfig) -> None:
    """Choose device and graph mode, and open the compiled kernels from the main thread.

    May be called again in one process, also with other options: nothing that it sets decides which operators compute.
    Each net asks `gpt2x.ops.backend_of(hardware)` for that.

    Raises:
        UserError: this MindSpore has no such device, or the compiled kernels belong to a different version of gpt2x.
    """
    os.environ.setdefault("GLOG_v", "3")  # MindSpore logs only errors
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    current = ms.get_current_device()
    # A process that has met others has a device number from MindSpore, which rejects a different one. None: it chooses.
    device_id = current.device_id if current.device_target == hardware.device_target else 0
    try:
        ms.set_device(hardware.device_target, device_id or None)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"hardware.device_target={hardware.device_target} (hardware={hardware.name}): this machine has no such "
            f"device ({str(error).strip().splitlines()[0]}); use hardware=cpu."
        ) from None
    if hardware.backend != "native":
        return
    try:
        native.library()
    except native.MissingKernelsError as reason:
        console.warn(
            f"gpt2x's C++ kernels are not available ({reason}); training will be slower. "
            "Set hardware.native_kernels=false to silence this warning."
        )


def has_device(device_target: str) -> bool:
    """Return whether this machine shows a device of this kind; MindSpore is not asked, since its import takes seconds.

    Ascend's driver makes /dev/davinci0 and so on, and /dev/davinci_manager; containers get those of their devices.
    """
    return device_target == "CPU" or any(Path("/dev").glob("*davinci*"))


def measure_peak_tflops(seconds: float = 0.4) -> float:
    """Return the best rate of MindSpore's fp32 matrix products (2048, 2048) x (2048, 2048) here, in TFLOP/s."""
    from mindspore import Tensor, ops

    size = 2048
    a = Tensor(np.ones((size, size), np.float32))
    product = ops.MatMul()
    product(a, a).asnumpy()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a, a)[0, 0].asnumpy()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e12
