"""The process-global state of MindSpore: device, mode, threads, random seed."""

from __future__ import annotations

import os
import time

import numpy as np

from gpt2x import native
from gpt2x.config import HardwareConfig
from gpt2x.errors import UserError
from gpt2x.runtime.console import console


def set_up_device(hardware: HardwareConfig) -> None:
    """Choose the device, its kernels and graph mode; once a process.

    Raises:
        UserError: when this MindSpore has no such device.
    """
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's own warnings: errors only
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        ms.set_device(hardware.device_target)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(
            f"hardware.device_target={hardware.device_target} (hardware={hardware.name}): this machine has none "
            f"({str(error).strip().splitlines()[0]}); use hardware=cpu"
        ) from None
    try:
        native.set_up(hardware.device_target == "CPU" and hardware.native_kernels)
    except native.MissingKernelsError as reason:
        console.warn(f"slower without gpt2x's own kernels: {reason}; hardware.native_kernels=false says this is meant")


def measure_peak_tflops(seconds: float = 0.4) -> float:
    """The best rate of fp32 matrix products (2048, 2048) x (2048, 2048) by MindSpore on this machine, in TFLOP/s."""
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
