"""Tensors that stay in their file until they are asked for: one description for safetensors and PyTorch files."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from gpt2x.errors import UserError

# safetensors' names (https://huggingface.co/docs/safetensors) to numpy's, which has no bfloat16; in the order in which
# the library writes tensors, which aligns them
SAFETENSORS_DTYPES = {
    "I64": "int64",
    "F64": "float64",
    "F32": "float32",
    "I32": "int32",
    "BF16": "bfloat16",
    "F16": "float16",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

Shape = tuple[int, ...]
PIECE_BYTES = 1 << 24  # what is copied, hashed or mapped at once


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file: little-endian values, `strides` in elements (None: row-major)."""

    file: Path
    offset_bytes: int
    stored_dtype: str  # numpy's name, or bfloat16
    shape: Shape
    strides: Shape | None = None

    @property
    def dtype(self) -> np.dtype:
        """Of the values: bfloat16 comes as float32, whose upper half it is."""
        return np.dtype("<f4" if self.stored_dtype == "bfloat16" else self.stored_dtype).newbyteorder("<")

    @property
    def num_elements(self) -> int:
        """Elements from the first to the last, gaps of a strided view included."""
        return self._span(self.shape)

    def read(self, start: Shape | None = None, shape: Shape | None = None) -> np.ndarray:
        """The values of a box: a read-only view of the mapped file where it lies there without gaps, else a copy.

        Only pages of the box are mapped, those of a copy one piece after the other.

        Args:
            start: Where the box begins; the tensor's beginning.
            shape: Of the box; up to the tensor's end.
        """
        start = start or (0,) * len(self.shape)
        shape = tuple(n - at for n, at in zip(self.shape, start, strict=True)) if shape is None else shape
        if 0 in shape:
            return np.empty(shape, self.dtype)
        if self._span(shape) <= math.prod(shape):
            return self._map(start, shape)
        values = np.empty(shape, self.dtype)
        row_bytes = self._steps[0] * np.dtype(self._mapped_dtype).itemsize
        for first, count in _row_ranges(shape[0], row_bytes):
            begin = (start[0] + first, *start[1:])
            values[first : first + count] = self._map(begin, (count, *shape[1:]))
        return values

    @property
    def _steps(self) -> Shape:
        if self.strides is not None:
            return self.strides
        return tuple(math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape)))

    @property
    def _mapped_dtype(self) -> str:
        return "<u2" if self.stored_dtype == "bfloat16" else self.dtype.str

    def _span(self, shape: Shape) -> int:
        if 0 in shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(shape, self._steps, strict=True))

    def _map(self, start: Shape, shape: Shape) -> np.ndarray:
        stored = np.dtype(self._mapped_dtype)
        first = sum(at * step for at, step in zip(start, self._steps, strict=True))
        offset = self.offset_bytes + first * stored.itemsize
        flat = np.asarray(np.memmap(self.file, stored, "r", offset, (self._span(shape),)))
        steps = tuple(step * stored.itemsize for step in self._steps)
        values = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        if self.stored_dtype == "bfloat16":
            return np.left_shift(values, 16, dtype=np.uint32, order="C").reshape(-1).view(self.dtype).reshape(shape)
        return np.require(values, requirements="A")


@dataclass(frozen=True)
class Spec:
    """What is known of a tensor without reading it."""

    shape: Shape
    dtype: np.dtype


class LazyTensors(Mapping[str, np.ndarray]):
    """Names to values, which are read when they are asked for, whole or a box of them.

    Args:
        specs: Of all tensors.
        read: Gives the values of a box: (name, start, shape).
    """

    def __init__(self, specs: Mapping[str, Spec], read: Callable[[str, Shape, Shape], np.ndarray]):
        self.specs = dict(specs)
        self._read = read

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of all tensors."""
        return {name: spec.shape for name, spec in self.specs.items()}

    def read(self, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """The values of a box: a read-only view where it lies in a file without gaps, else a copy."""
        spec = self.specs[name]
        if not all(at >= 0 and at + n <= size for at, n, size in zip(start, shape, spec.shape, strict=True)):
            raise ValueError(f"{name} {spec.shape} has no box of {shape} at {start}")
        return self._read(name, start, shape)

    def box(self, name: str, start: Shape | None = None, shape: Shape | None = None) -> LazyBox:
        """A box, or the whole tensor, that is read when it is written elsewhere."""
        whole = self.specs[name].shape
        return LazyBox(self, name, start or (0,) * len(whole), whole if shape is None else shape)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.specs[name].shape
        return self.read(name, (0,) * len(shape), shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


@dataclass(frozen=True)
class LazyBox:
    """A box of a tensor that is not read yet."""

    tensors: LazyTensors
    name: str
    start: Shape
    shape: Shape

    @property
    def dtype(self) -> np.dtype:
        """Of the values."""
        return self.tensors.specs[self.name].dtype

    def rows(self, first: int, count: int) -> np.ndarray:
        """The values of some of its rows."""
        return self.tensors.read(self.name, (self.start[0] + first, *self.start[1:]), (count, *self.shape[1:]))


Values = np.ndarray | LazyBox


def pieces(values: Values) -> Iterator[np.ndarray]:
    """The values, in order and row-major, some rows at a time: at most 16 MiB, but one row at least."""
    if not values.shape:
        yield values if isinstance(values, np.ndarray) else values.tensors[values.name]
        return
    row_bytes = math.prod(values.shape[1:]) * values.dtype.itemsize
    for first, count in _row_ranges(values.shape[0], row_bytes):
        rows = values[first : first + count] if isinstance(values, np.ndarray) else values.rows(first, count)
        yield np.ascontiguousarray(rows)


def _row_ranges(num_rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """(first, count) of rows that fit a piece."""
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    return ((first, min(step, num_rows - first)) for first in range(0, num_rows, step))


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


def write_safetensors(path: Path, tensors: Mapping[str, Values], metadata: dict[str, str] | None = None) -> str:
    """Writes what the library's `save_file` writes, byte for byte, but never holds more than a piece of a tensor.

    Returns:
        The file's SHA-256. It is on the disk (fsync).

    Raises:
        OSError: It cannot be written.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    order = sorted(tensors, key=lambda name: (list(names).index(tensors[name].dtype.name), name))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in order:
        values = tensors[name]
        end = offset + math.prod(values.shape) * values.dtype.itemsize
        header[name] = {"dtype": names[values.dtype.name], "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as stream:

        def write(content: bytes | np.ndarray) -> None:
            left = memoryview(content)  # type: ignore[arg-type]  # numpy's arrays are buffers
            digest.update(left)
            while left:
                left = left[stream.write(left) :]

        write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in pieces(tensors[name]):
                write(piece.astype(piece.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8))
        os.fsync(stream.fileno())
    return digest.hexdigest()
