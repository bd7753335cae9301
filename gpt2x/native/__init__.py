"""gpt2x's C++ kernels for the CPU, compiled when gpt2x is installed.

- `src/`: the kernels. Each operator states its signature: operand names, types, sizes.
- `signatures.py`, `constants.py`: the same signatures and numbers in Python; `interface.py` compares both at load.
- here: opening the library (`library`), and its operators as MindSpore primitives (`operator`).

There is one extension module per processor level, built from the same sources (pyproject.toml); the best one that this
processor runs is used. Without any, or without MindSpore's oneDNN, the composed operators compute the same.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt2x.errors import UserError, require
from gpt2x.native.interface import InterfaceError, Signature, read_interface
from gpt2x.native.signatures import PRODUCTS, SIGNATURES

VARIANTS = {  # modules, best first, and the processor flags that they require (the levels of x86-64's psABI)
    "avx512": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "avx2": {"avx2", "fma", "bmi2", "f16c"},
}


class MissingKernelsError(Exception):
    """Why this machine cannot use the kernels, and what to do about it."""


class Library(NamedTuple):
    """The opened library."""

    path: Path
    variant: str  # a key of VARIANTS
    functions: ctypes.CDLL
    constants: dict[str, float]


@cache
def processor_flags() -> set[str]:
    """Return this processor's features as Linux names them; empty if /proc/cpuinfo does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


@cache
def library() -> Library:
    """Open the kernels, check their interface, connect oneDNN's matrix product and start the threads.

    Call it from the main thread first: the kernels' threads keep to the cores of the thread that starts them.

    Raises:
        MissingKernelsError: no library runs here.
        UserError: the library was compiled from a different version of gpt2x.
    """
    path, variant = module_file()
    onednn = importlib.util.find_spec("mindspore")
    assert onednn is not None
    assert onednn.origin is not None
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise MissingKernelsError(f"{path.name} does not load: {error}") from None
    constants = check_interface(path, functions)
    threadpool = str(Path(onednn.origin).parent / "lib" / "libdnnl.so.3")
    if functions.gpt2x_open(threadpool.encode(), num_threads()) != 0:
        raise MissingKernelsError("this MindSpore has no lib/libdnnl.so.3 with dnnl_threadpool_interop_sgemm")
    return Library(path, variant, functions, constants)


def module_file() -> tuple[Path, str]:
    """Return the file and the name of the best variant that this processor runs.

    Raises:
        MissingKernelsError: there is none.
    """
    usable = [name for name, flags in VARIANTS.items() if flags <= processor_flags()]
    if not usable:
        raise MissingKernelsError("this processor has no AVX2")
    for name in usable:
        spec = importlib.util.find_spec(f"{__name__}.{name}")
        if spec is not None and spec.origin is not None:
            return Path(spec.origin), name
    raise MissingKernelsError("they are not compiled: install a C++20 compiler, then run pip install -e .")


def check_interface(path: Path, functions: ctypes.CDLL) -> dict[str, float]:
    """Compare the library's interface with this Python code; return the library's constants.

    Raises:
        UserError: they differ.
    """
    try:
        describe = functions.gpt2x_interface
    except AttributeError:
        text, difference = "", "it does not describe its interface"
    else:
        describe.restype = ctypes.c_char_p
        text, difference = describe().decode(), ""
    try:
        return read_interface(text)
    except InterfaceError as error:
        raise UserError(
            f"hardware.native_kernels=true: the compiled kernels {path} do not match this version of gpt2x "
            f"({difference or error}). Run pip install -e . to compile them again."
        ) from None


def has_fast_bf16() -> bool:
    """Return whether this processor multiplies bf16 by instructions of its own (AMX, AVX512-BF16).

    Raises:
        MissingKernelsError, UserError: as `library`.
    """
    return bool(library().functions.gpt2x_has_fast_bf16())


def require_bf16() -> None:
    """Check that this machine trains in bf16.

    Raises:
        UserError: it has no kernels, or its processor has no instructions for bf16.
    """
    try:
        reason = "" if has_fast_bf16() else "this processor has neither AMX nor AVX512-BF16"
    except MissingKernelsError as error:
        reason = f"gpt2x's C++ kernels are not available: {error}"
    require(not reason, f"hardware.precision=bf16: {reason}; use hardware.precision=fp32.")


def num_threads() -> int:
    """Return the number of cores that this process may use, or OMP_NUM_THREADS if that is less.

    Reads Python's copy of the environment, because MindSpore writes OMP_NUM_THREADS=1 into the process' own.
    """
    cores, limit = len(os.sched_getaffinity(0)), os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) > 0 else cores


def use_huge_pages(values: np.ndarray) -> None:
    """Move an array that is read over and over to pages of 2 MB, if the system has them (Linux 6.1)."""
    pointer, size = ctypes.c_void_p(values.ctypes.data), ctypes.c_int64(values.nbytes)
    library().functions.gpt2x_move_to_huge_pages(pointer, size)


def record(name: str, **fields: int | np.ndarray) -> np.ndarray:
    """Return an operand of named int32 values, in the order of the C++ struct `name` (constants.hpp).

    Args:
        name: such as "MaskSettings".
        fields: a value for every field; an array fills as many places.
    """
    places = {key.partition(".")[2]: int(at) for key, at in library().constants.items() if key.startswith(f"{name}.")}
    assert places.keys() == fields.keys(), (name, places.keys(), fields.keys())
    return np.concatenate([np.atleast_1d(np.int32(fields[field])) for field in sorted(places, key=places.__getitem__)])


def product(name: str, precision: str) -> Any:
    """Return the kernel that multiplies matrices in a precision.

    Args:
        name: a key of `PRODUCTS`.
        precision: fp32, or bf16: the kernel rounds the operands of its products, whose sums are fp32.
    """
    assert name in PRODUCTS, name
    return operator(f"{name}_bf16" if precision == "bf16" else name)


def operator(name: str, in_place: bool = False, **sizes: int) -> Any:
    """Return a kernel as a primitive of graphs; it takes the operands of its signature, in order.

    Args:
        name: a key of `SIGNATURES`.
        in_place: it changes inputs. MindSpore must neither drop it nor move it past other users of them.
        sizes: those of the outputs that no input has.
    """
    from mindspore import dtype, ops

    signature = Signature(name, SIGNATURES[name])
    count = len(signature.outputs)

    def out_shape(*shapes: list[int]) -> Any:
        outputs = signature.output_shapes(shapes, sizes)
        return outputs[0] if count == 1 else tuple(outputs)

    dtypes = tuple(getattr(dtype, output.dtype) for output in signature.outputs)
    out_dtype = dtypes[0] if count == 1 else dtypes
    path = library().path
    primitive = ops.Custom(f"{path}:{name}", out_shape=out_shape, out_dtype=lambda *_: out_dtype, func_type="aot")
    if in_place:
        primitive.add_prim_attr("side_effect_mem", True)
    return primitive


class Call:
    """A call of a kernel on arrays that stay where they are, without MindSpore: what changes is written into them.

    Args:
        name: a key of `SIGNATURES`.
        operands: of its inputs, in order; contiguous, and kept.
        sizes: those of the output that no input has.

    Attributes:
        output: the kernel's output, which each call overwrites.

    Raises:
        ValueError: an operand has a different shape or type than the signature says.
    """

    def __init__(self, name: str, operands: Sequence[np.ndarray], **sizes: int):
        signature = Signature(name, SIGNATURES[name])
        (shape,) = signature.output_shapes([array.shape for array in operands], sizes)
        self.output = np.empty(shape, signature.outputs[0].dtype)
        signature.check_types(
            [str(array.dtype) for array in operands], [array.flags.c_contiguous for array in operands]
        )
        self._name, self._operands = name, [*operands, self.output]
        self._function = getattr(library().functions, name)
        count, pointer = len(self._operands), ctypes.POINTER(ctypes.c_int64)
        self._shapes = [(ctypes.c_int64 * max(1, array.ndim))(*array.shape) for array in self._operands]
        self._arguments = (
            ctypes.c_int(count),
            (ctypes.c_void_p * count)(*[array.ctypes.data for array in self._operands]),
            (ctypes.c_int * count)(*[array.ndim for array in self._operands]),
            (pointer * count)(*[ctypes.cast(shape, pointer) for shape in self._shapes]),
            None, None, None,
        )  # fmt: skip

    def __call__(self) -> np.ndarray:
        """Run the kernel; return `output`.

        Raises:
            RuntimeError: it rejects a value; standard error says why.
        """
        if self._function(*self._arguments) != 0:
            raise RuntimeError(f"the kernel {self._name} failed; standard error says why")
        return self.output
