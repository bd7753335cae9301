"""Kernels of our own for the CPU (floor 1): C++ that is compiled when gpt2x is installed.

A module of the package a kind of processor, from the same sources (pyproject.toml); the best that this processor runs
is taken. Without one, or without MindSpore's oneDNN, the operators written out with MindSpore's own compute the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = {  # modules, best first, and what they ask of a processor (the levels of x86-64's psABI)
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
}


class MissingKernelsError(Exception):
    """Why there are no kernels here, and what would bring them."""


@cache
def processor_flags() -> set[str]:
    """What this processor can do, in the kernel's words; nothing where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


@cache
def library() -> tuple[Path, str]:
    """The library of kernels, open and with oneDNN's matrix product, and the name of its variant.

    Raises:
        MissingKernelsError: there is none that runs here.
    """
    usable = [name for name, flags in VARIANTS.items() if flags <= processor_flags()]
    if not usable:
        raise MissingKernelsError("this processor has no AVX2")
    for name in usable:
        found = importlib.util.find_spec(f"{__name__}.{name}")
        if found is not None and found.origin is not None:
            path = Path(found.origin)
            break
    else:
        raise MissingKernelsError('they are not compiled; install a C++20 compiler, then: pip install -e "."')
    onednn = importlib.util.find_spec("mindspore")
    assert onednn is not None
    assert onednn.origin is not None
    try:
        kernels = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingKernelsError(f"{path.name} does not load ({error})") from None
    if kernels.gpt2x_open(str(Path(onednn.origin).parent / "lib" / "libdnnl.so.3").encode(), num_threads()) != 0:
        raise MissingKernelsError("this MindSpore has no lib/libdnnl.so.3 with dnnl_threadpool_interop_sgemm")
    return path, name


def num_threads() -> int:
    """One for each core that this process may use, or OMP_NUM_THREADS where that is less.

    Asked of Python's environment: MindSpore writes OMP_NUM_THREADS=1 into the process' own.
    """
    cores, limit = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) > 0 else cores


def use_huge_pages(values: np.ndarray) -> None:
    """Move an array that is read over and over to pages of 2 MB, where the system has them (Linux 6.1)."""
    path, _ = library()
    pointer, size = ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.nbytes)
    ctypes.CDLL(str(path)).gpt2x_move_to_huge_pages(pointer, size)


def operator(name: str, shapes: Callable[..., Any], num_outputs: int = 1, in_place: bool = False) -> Any:
    """A kernel as an operator of graphs.

    Args:
        name: of the C function, whose comment says what it takes.
        shapes: those of the outputs from those of the inputs.
        num_outputs: all fp32.
        in_place: it changes inputs, and must neither be left out nor pass another that uses them.
    """
    from mindspore import dtype, ops

    path, _ = library()
    kinds = dtype.float32 if num_outputs == 1 else (dtype.float32,) * num_outputs
    found = ops.Custom(f"{path}:{name}", out_shape=shapes, out_dtype=lambda *_: kinds, func_type="aot")
    if in_place:
        found.add_prim_attr("side_effect_mem", True)
    return found
