"""MindSpore's `.ckpt` files, read and written without MindSpore (mindspore/train/serialization.py, checkpoint.proto).

A file is a sequence of records: the name of a parameter, its shape, its dtype and its bytes. A parameter of more than
512 MiB has several records, one after the other, each with the shape of the whole. `crc_check=True` adds a CRC-32.
"""

from __future__ import annotations

import math
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from gpt2x.checkpoint.tensors import PIECE_BYTES, Shape, StoredTensor, Values, pieces, reject_lfs_pointer
from gpt2x.convert.protobuf import Field, fields, numbers, signed, text, varint
from gpt2x.errors import UserError
from gpt2x.runtime import limits

# MindSpore's dtypes -> numpy's
DTYPES = {
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Float64": "float64",
    "Bool": "bool",
} | {f"{kind}{bits}": f"{kind}{bits}".lower() for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}
NAMES = {numpy_name: name for name, numpy_name in DTYPES.items()}
RECORD_BYTES = 512 << 20  # serialization.py, SLICE_SIZE
CRC_MARK, CRC_BYTES = b"crc_num", 10
ENCRYPTED = tuple(bytes([first]) + b"\x5e\x3a\x7f" for first in (0xD8, 0xD9, 0xDA))  # AES-GCM, AES-CBC, SM4-CBC
FOREIGN = {b"PK\x03\x04": "a file of PyTorch or a zip archive", b"\x80\x02": "a pickle", b"\x89HDF": "an HDF5 file"}


class Readable(Protocol):
    """A tensor that is read when it is asked for, whole or as a box."""

    @property
    def shape(self) -> Shape:
        """The shape."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""

    def read(self, start: Shape | None = None, shape: Shape | None = None) -> np.ndarray:
        """Return the values of a box, by default of all."""


@dataclass(frozen=True)
class RecordedTensor:
    """A parameter whose bytes are in several records of a file.

    Attributes:
        file: the file.
        stored_dtype: numpy's name, or bfloat16.
        shape: the shape of the whole.
        records: position and number of bytes of each.
    """

    file: Path
    stored_dtype: str
    shape: Shape
    records: tuple[tuple[int, int], ...]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values; bfloat16 is read as float32."""
        return self._stored(()).dtype

    def read(self, start: Shape | None = None, shape: Shape | None = None) -> np.ndarray:
        """Return a copy of a box. At most 16 MiB of rows, or one row, are in memory beside it."""
        start = start or (0,) * len(self.shape)
        shape = tuple(n - at for n, at in zip(self.shape, start, strict=True)) if shape is None else shape
        values = np.empty(shape, self.dtype)
        row_bytes = math.prod(self.shape[1:]) * _item_bytes(self.stored_dtype)
        step = max(1, PIECE_BYTES // max(1, row_bytes))
        columns = tuple(slice(at, at + n) for at, n in zip(start[1:], shape[1:], strict=True))
        for first in range(0, shape[0] if values.size else 0, step):
            count = min(step, shape[0] - first)
            begin = (start[0] + first) * row_bytes
            stored = np.concatenate(list(self._parts(begin, begin + count * row_bytes)))
            rows = self._decoded(stored).reshape(count, *self.shape[1:])
            values[first : first + count] = rows[(slice(None), *columns)]
        return values

    def _parts(self, begin: int, end: int) -> Iterator[np.ndarray]:
        """Yield the bytes from `begin` to `end` of the whole, as they lie in the records."""
        at = 0
        for offset, size in self.records:
            low, high = max(begin, at), min(end, at + size)
            if low < high:
                yield StoredTensor(self.file, offset + low - at, "uint8", (high - low,)).read()
            at += size

    def _decoded(self, stored: np.ndarray) -> np.ndarray:
        if self.stored_dtype == "bfloat16":
            return np.left_shift(stored.view("<u2"), 16, dtype=np.uint32).view(np.float32)
        return stored.view(self.dtype)

    def _stored(self, shape: Shape) -> StoredTensor:
        return StoredTensor(self.file, 0, self.stored_dtype, shape)


@dataclass
class _Parameter:
    dtype: str
    dims: list[int]
    records: list[tuple[int, int]]


def open_ckpt(path: Path) -> dict[str, Readable]:
    """Return the parameters of a `.ckpt` file. Their values stay in the file; texts are left out.

    Raises:
        UserError: the file cannot be read, is encrypted, cut off or no MindSpore checkpoint, or has an unsupported
            dtype.
    """
    reject_lfs_pointer(path)
    _reject_other_kinds(path)
    parameters: dict[str, _Parameter] = {}
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            previous = None
            for record in _records(content):
                name, parameter = _parse(content, record)  # type: ignore[arg-type]
                if name in parameters and name != previous:
                    raise ValueError(f"{name!r} occurs twice")
                joined = parameters.setdefault(name, _Parameter(parameter.dtype, parameter.dims, []))
                if (joined.dtype, joined.dims) != (parameter.dtype, parameter.dims):
                    raise ValueError(f"the records of {name!r} have different shapes or dtypes")
                joined.records += parameter.records
                previous = name
        return {
            name: _located(path, name, parameter) for name, parameter in parameters.items() if parameter.dtype != "str"
        }
    except (ValueError, OSError) as error:
        raise UserError(
            f"{path} is cut off, damaged or not a MindSpore checkpoint ({error}). Copy or download it again."
        ) from error


def verify_ckpt(path: Path) -> None:
    """Compare the file's CRC-32 with the one that it states, if it states one (`save_checkpoint(crc_check=True)`).

    Raises:
        UserError: they differ.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if not (size := _crc_size(content)):
            return
        crc, end = 0, len(content) - size
        for first in range(0, end, PIECE_BYTES):
            crc = zlib.crc32(content[first : min(end, first + PIECE_BYTES)], crc)
        if crc != int.from_bytes(content[-CRC_BYTES:], "big"):
            raise UserError(f"{path} is damaged: its CRC-32 is not the one that it states. Copy or download it again.")


def write_ckpt(path: Path, tensors: Mapping[str, Values]) -> None:
    """Write what MindSpore's `save_checkpoint` writes, byte for byte, with one piece of a tensor in memory at a time.

    The file is on the disk (fsync) when this returns.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as stream:
        for name, values in tensors.items():
            left = 0  # bytes until the end of the record
            remaining = math.prod(values.shape) * values.dtype.itemsize
            for piece in pieces(values):
                little = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<"))
                content = memoryview(little.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # arrays are buffers
                while content:
                    if not left:
                        left = min(remaining, RECORD_BYTES)
                        remaining -= left
                        stream.write(_head(name, values, left))
                    stream.write(content[:left])
                    written = min(left, len(content))
                    content, left = content[written:], left - written
        stream.flush()
        os.fsync(stream.fileno())


def _head(name: str, values: Values, num_bytes: int) -> bytes:
    """Return a record up to its `num_bytes` bytes of values."""
    dims = b"".join(b"\x08" + varint(dim) for dim in values.shape)
    dtype = NAMES[values.dtype.name].encode()
    tensor = dims + b"\x12" + varint(len(dtype)) + dtype + b"\x1a" + varint(num_bytes)
    tag = b"\x0a" + varint(len(name.encode())) + name.encode()
    tensor = b"\x12" + varint(len(tensor) + num_bytes) + tensor
    return b"\x0a" + varint(len(tag) + len(tensor) + num_bytes) + tag + tensor


def _reject_other_kinds(path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(4)
    if not head:
        raise UserError(f"{path} is empty: 0 bytes. Copy or download it again.")
    if head in ENCRYPTED:
        raise UserError(
            f"{path} is encrypted (MindSpore's save_checkpoint with enc_key). Load it with mindspore.load_checkpoint "
            "and its dec_key, and save it again without enc_key."
        )
    for magic, kind in FOREIGN.items():
        if head.startswith(magic):
            raise UserError(f"{path} is {kind}, not a MindSpore checkpoint. Give the file that MindSpore saved.")


def _records(content: mmap.mmap) -> Iterator[Field]:
    """Return the records of a file; one of 512 MiB takes a field, and so does a parameter of one value."""
    return fields(content, 0, len(content) - _crc_size(content), most=limits.RECORDS)  # type: ignore[arg-type]


def _crc_size(content: mmap.mmap) -> int:
    """Return the bytes of the checksum at the end: 17, or 0 if there is none."""
    size = len(CRC_MARK) + CRC_BYTES
    return size if content[-size:-CRC_BYTES] == CRC_MARK else 0


def _parse(content: bytes, record: Field) -> tuple[str, _Parameter]:
    """Return the name and the description in one record.

    Raises:
        ValueError: it is not one of MindSpore's records.
    """
    parts: dict[int, Field] = {}
    if record.number == 1 and record.has_bytes:
        parts = {field.number: field for field in fields(content, record.start, record.end)}
    if set(parts) == {1, 3}:
        raise ValueError(f"{text(content, parts[1])!r} is a MapParameter, which GPT-2 does not have")
    if set(parts) != {1, 2} or not parts[2].has_bytes:
        raise ValueError(f"no parameter before position {max(record.start, record.end)}")
    dims: list[int] = []
    dtype, values = "", None
    for field in fields(content, parts[2].start, parts[2].end):
        if field.number == 1:
            dims += [signed(value) for value in numbers(content, field)]
            if len(dims) > limits.DIMS:
                raise ValueError(f"a shape has more than {limits.DIMS} dims")
        elif field.number == 2:
            dtype = text(content, field)
        elif field.number == 3 and field.has_bytes and values is None:
            values = (field.start, field.end - field.start)
        else:
            raise ValueError(f"no parameter before position {max(record.start, record.end)}")
    if values is None or not dtype:
        raise ValueError(f"{text(content, parts[1])!r} has no values")
    return text(content, parts[1]), _Parameter(dtype, dims, [values])


def _located(path: Path, name: str, parameter: _Parameter) -> Readable:
    """Return a parameter as a tensor, after checking that its bytes are as many as its shape says.

    Raises:
        ValueError: shape, dtype and bytes do not fit together.
    """
    if parameter.dtype not in DTYPES:
        raise ValueError(f"{name!r} has the dtype {parameter.dtype!r}, not one of {', '.join(DTYPES)}")
    stored = DTYPES[parameter.dtype]
    shape = () if parameter.dims == [0] else tuple(parameter.dims)  # as load_checkpoint does
    stated = sum(size for _, size in parameter.records)
    if (
        min(shape, default=1) < 0
        or max(shape, default=1) >= limits.DIM
        or math.prod(shape) * _item_bytes(stored) != stated
    ):
        raise ValueError(f"{name!r} has the shape {shape} of {parameter.dtype}, but {stated} bytes")
    if len(parameter.records) == 1:
        return StoredTensor(path, parameter.records[0][0], stored, shape)
    return RecordedTensor(path, stored, shape, tuple(parameter.records))


def _item_bytes(stored_dtype: str) -> int:
    return 2 if stored_dtype == "bfloat16" else np.dtype(stored_dtype).itemsize
