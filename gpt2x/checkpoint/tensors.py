"""Tensors that stay in their file until they are asked for: one description for safetensors and PyTorch files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gpt2x.errors import UserError

# safetensors' names (https://huggingface.co/docs/safetensors) to numpy's, which has no bfloat16
SAFETENSORS_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: little-endian values, `strides` in elements (None: row-major)."""

    file: Path
    offset_bytes: int
    dtype: str  # numpy's name, or bfloat16
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None

    @property
    def num_elements(self) -> int:
        """Elements from the first to the last, gaps of a strided view included."""
        if 0 in self.shape:
            return 0
        if self.strides is None:
            return math.prod(self.shape)
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    def read(self) -> np.ndarray:
        """The values: a read-only view of the memory-mapped file where dtype and alignment allow, else a copy.

        bfloat16 comes as float32, whose upper half it is.
        """
        stored = np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")
        if self.num_elements == 0:
            return np.empty(self.shape, np.float32 if self.dtype == "bfloat16" else stored)
        flat = np.asarray(np.memmap(self.file, stored, "r", self.offset_bytes, (self.num_elements,)))
        if self.strides is None:
            values = flat.reshape(self.shape)
        else:
            steps = tuple(stride * stored.itemsize for stride in self.strides)
            values = np.lib.stride_tricks.as_strided(flat, self.shape, steps, writeable=False)
        if self.dtype == "bfloat16":
            return (
                np.left_shift(values, 16, dtype=np.uint32, order="C").reshape(-1).view(np.float32).reshape(self.shape)
            )
        return np.require(values, requirements="A")


class LazyTensors(Mapping[str, np.ndarray]):
    """Names to values, each read when it is asked for; `shapes` is there without reading."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        self.shapes = dict(shapes)
        self._read = read

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.shapes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def refuse_lfs_pointer(path: Path) -> None:
    """Names the usual reason for a weights file of 130 bytes: a clone of a hub repository without Git LFS.

    Raises:
        UserError: `path` is such a pointer, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            is_pointer = stream.read(24) == b"version https://git-lfs."
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give a file that is there and readable") from error
    if is_pointer:
        raise UserError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in {path.parent}")


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file. The library checks the layout; the values stay in the file.

    Raises:
        UserError: The file cannot be read, is truncated, is no safetensors file or holds a dtype numpy cannot.
    """
    refuse_lfs_pointer(path)
    try:
        with safe_open(path, framework="numpy") as _:
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or no safetensors file ({error}): copy or download it again") from error
    with path.open("rb") as stream:
        (header_bytes,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(header_bytes))
    header.pop("__metadata__", None)
    stored = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{path}: {name} has dtype {entry['dtype']}: convert it to one of {', '.join(SAFETENSORS_DTYPES)}"
            )
        offset = 8 + header_bytes + entry["data_offsets"][0]
        stored[name] = StoredTensor(path, offset, SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return stored


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors in row-major order (the library stores the memory as it lies, so it must be that).

    The library makes the file readable by its owner alone; here it gets the mode that any new file has.

    Raises:
        OSError: It cannot be written (the library has an error of its own for a full disk).
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: np.asarray(values, order="C") for name, values in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
