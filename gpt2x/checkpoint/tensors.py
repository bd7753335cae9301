"""Tensors that stay in their file until they are read: one description for safetensors and PyTorch files."""

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
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import parse_json

# safetensors' names (https://huggingface.co/docs/safetensors) -> numpy's, which has no bfloat16. The order is that in
# which the library writes tensors, so that they are aligned
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
AGAIN = "Copy or download it again."
PIECE_BYTES = 1 << 24  # the largest piece that is copied, hashed or mapped at once


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor in a file: little-endian values, `strides` in elements (None: row-major)."""

    file: Path
    offset_bytes: int
    stored_dtype: str  # numpy's name, or bfloat16
    shape: Shape
    strides: Shape | None = None

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values. bfloat16 is read as float32, of which it is the upper half."""
        return np.dtype("<f4" if self.stored_dtype == "bfloat16" else self.stored_dtype).newbyteorder("<")

    @property
    def num_elements(self) -> int:
        """Number of elements from the first to the last, including the gaps of a strided view."""
        return self._span(self.shape)

    def read(self, start: Shape | None = None, shape: Shape | None = None) -> np.ndarray:
        """Return a box: a read-only view of the mapped file if the box lies there without gaps, else a copy.

        Only pages of the box are mapped. A copy is made piece by piece.

        Args:
            start: the index of the box's first value; by default the tensor's.
            shape: the shape of the box; by default it reaches to the tensor's end.
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
        # as a string: numpy resolves the links of a Path on every call, which takes longer than mapping a small box
        flat = np.asarray(np.memmap(str(self.file), stored, "r", offset, (self._span(shape),)))
        steps = tuple(step * stored.itemsize for step in self._steps)
        values = np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
        if self.stored_dtype == "bfloat16":
            return np.left_shift(values, 16, dtype=np.uint32, order="C").reshape(-1).view(self.dtype).reshape(shape)
        return np.require(values, requirements="A")


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor."""

    shape: Shape
    dtype: np.dtype


class LazyTensors(Mapping[str, np.ndarray]):
    """Name -> values, which are read on access, whole or as a box.

    Args:
        specs: shape and dtype of all tensors by name.
        read: returns the values of a box, for (name, start, shape).
    """

    def __init__(self, specs: Mapping[str, Spec], read: Callable[[str, Shape, Shape], np.ndarray]):
        self.specs = dict(specs)
        self._read = read

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of all tensors by name."""
        return {name: spec.shape for name, spec in self.specs.items()}

    def read(self, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """Return the values of a box: a read-only view if it lies in a file without gaps, else a copy."""
        spec = self.specs[name]
        if not all(at >= 0 and at + n <= size for at, n, size in zip(start, shape, spec.shape, strict=True)):
            raise ValueError(f"{name} {spec.shape} has no box of {shape} at {start}")
        return self._read(name, start, shape)

    def box(self, name: str, start: Shape | None = None, shape: Shape | None = None) -> LazyBox:
        """Return a box, by default the whole tensor, that is not read yet."""
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
        """The dtype of the values."""
        return self.tensors.specs[self.name].dtype

    def rows(self, first: int, count: int) -> np.ndarray:
        """Return the values of `count` of its rows, from row `first`."""
        return self.tensors.read(self.name, (self.start[0] + first, *self.start[1:]), (count, *self.shape[1:]))


Values = np.ndarray | LazyBox


def pieces(values: Values) -> Iterator[np.ndarray]:
    """Yield the values in row-major order, some rows at a time: at most 16 MiB, but at least one row."""
    if not values.shape:
        yield values if isinstance(values, np.ndarray) else values.tensors[values.name]
        return
    row_bytes = math.prod(values.shape[1:]) * values.dtype.itemsize
    for first, count in _row_ranges(values.shape[0], row_bytes):
        rows = values[first : first + count] if isinstance(values, np.ndarray) else values.rows(first, count)
        yield np.ascontiguousarray(rows)


def _row_ranges(num_rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Return (first, count) of the rows of each piece."""
    step = max(1, PIECE_BYTES // max(1, row_bytes))
    return ((first, min(step, num_rows - first)) for first in range(0, num_rows, step))


def reject_lfs_pointer(path: Path) -> None:
    """Check that a weights file is not a Git LFS pointer, which is what a clone without Git LFS contains.

    Raises:
        UserError: `path` is such a pointer, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            is_pointer = stream.read(24) == b"version https://git-lfs."
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). Give a file that exists and is readable."
        ) from error
    if is_pointer:
        raise UserError(f"{path} is a Git LFS pointer, not the weights. Run `git lfs pull` in {path.parent}.")


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, whose layout the library checks. Their values stay in the file.

    Raises:
        UserError: the file cannot be read, is truncated, is not a safetensors file, or has an unsupported dtype.
    """
    reject_lfs_pointer(path)
    header_bytes, header = _read_header(path)
    try:
        with safe_open(path, framework="numpy") as _:
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or not a safetensors file ({error}). {AGAIN}") from error
    header.pop("__metadata__", None)
    stored = {}
    for name, entry in header.items():
        if entry["dtype"] not in SAFETENSORS_DTYPES:
            raise UserError(
                f"{path}: {name} has dtype {entry['dtype']}. Convert it to one of {', '.join(SAFETENSORS_DTYPES)}."
            )
        if len(entry["shape"]) > limits.DIMS or max(entry["shape"], default=0) >= limits.DIM:
            raise UserError(f"{path}: {name[:60]!r} has an impossible shape of {len(entry['shape'])} dims. {AGAIN}")
        offset = 8 + header_bytes + entry["data_offsets"][0]
        stored[name] = StoredTensor(path, offset, SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return stored


def _read_header(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the length of a file's header and its content, before the library parses it without our limits.

    Raises:
        UserError: it is longer than the file or than any header, or is no JSON object of few enough tensors.
    """
    fault = f"{path} is truncated or not a safetensors file"
    size = limits.size_of(path, 1 << 63, AGAIN)
    with path.open("rb") as stream:
        start = stream.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= size - 8:
            raise UserError(f"{fault} (a header of {header_bytes} bytes in a file of {size}). {AGAIN}")
        if header_bytes > limits.HEADER_BYTES:
            raise UserError(f"{fault} (a header of {header_bytes:,} bytes; at most {limits.HEADER_BYTES:,} are read).")
        text = stream.read(header_bytes).decode("utf-8", "replace")
    header = parse_json(text, f"{fault}: its header", AGAIN, unique_keys=True)
    if not isinstance(header, dict) or len(header) > limits.TENSORS:
        raise UserError(f"{fault} (its header is no object of up to {limits.TENSORS:,} tensors). {AGAIN}")
    return header_bytes, header


def write_safetensors(path: Path, tensors: Mapping[str, Values], metadata: dict[str, str] | None = None) -> str:
    """Write what the library's `save_file` writes, byte for byte, with one piece of a tensor in memory at a time.

    The file is on the disk (fsync) when this returns.

    Returns:
        The file's SHA-256.

    Raises:
        OSError: the file cannot be written.
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
