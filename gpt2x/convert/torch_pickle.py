"""Read the tensors of a `torch.save` file without torch, and without running the code that a pickle can name.

There are two formats (torch/serialization.py): a zip archive of uncompressed members (`_save`, torch >= 1.6), and the
older sequence of pickles followed by raw storages (`_legacy_save`). In both, the pickle only describes tensors as views
of storages. The values are memory-mapped from the file.

Python's unpickler calls any importable function that a pickle names. Here (`gpt2x.convert.pickle_values`), inert,
immutable stand-ins take the place of the few names that a state dict needs, and every other name is rejected.

As transformers does, only tensors of the table are read. A table within a table, as Lightning, DeepSpeed and nanoGPT
write it, is read if it is the only one by its name.
"""

from __future__ import annotations

import io
import logging
import math
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpt2x.checkpoint.tensors import StoredTensor, reject_lfs_pointer
from gpt2x.convert.pickle_values import filled, load, require_scalars
from gpt2x.errors import UserError
from gpt2x.runtime import limits

log = logging.getLogger(__name__)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch/serialization.py, MAGIC_NUMBER
STORAGE_DTYPES = {
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int32": 4, "int16": 2}
# names of torch whose objects change no tensor
INERT = ("Size", "device", "Tensor", "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8",
         "uint8", "bool", "strided")  # fmt: skip
# what a pickle asks for -> what the file holds then
UNSUPPORTED = {
    "_rebuild_tensor_v3": "tensors of a dtype such as float8",
    "_rebuild_qtensor": "quantized tensors",
    "_rebuild_sparse_tensor": "sparse tensors",
    "_rebuild_sparse_csr_tensor": "sparse tensors",
    "_rebuild_wrapper_subclass": "quantized tensors",
    "_rebuild_meta_tensor_no_storage": "tensors without values",
    "ComplexFloatStorage": "complex tensors",
    "ComplexDoubleStorage": "complex tensors",
    "QInt8Storage": "quantized tensors",
    "QUInt8Storage": "quantized tensors",
    "QInt32Storage": "quantized tensors",
    "UntypedStorage": "tensors of a dtype such as float8",
}
SHARED_BYTES = 16 << 20  # that views of small storages may have beyond four times the file: an expanded mask
DIRECTORY_BYTES = 8 << 20  # of a zip archive's list of members; a GPT-2 of 48 layers has 60 kB
NESTED = ("state_dict", "model_state_dict", "model", "module")  # of Lightning, training loops, nanoGPT, DeepSpeed
BROKEN_PICKLE = (
    pickle.UnpicklingError,
    EOFError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    OverflowError,
    MemoryError,
    RuntimeError,  # zipfile raises it for unsupported features; also too deep recursion
    struct.error,
    zlib.error,
)


class Storage(NamedTuple):
    """A storage: consecutive values in the file, as the pickle describes them."""

    key: str
    dtype: str
    num_elements: int
    offset: int  # in elements; not 0 only in the legacy format, if a storage is a view of a different one


class TensorView(NamedTuple):
    """A tensor as the pickle describes it; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StorageType(NamedTuple):
    dtype: str


class _RebuildTensor:
    """Stand-in for torch._utils._rebuild_tensor and _rebuild_tensor_v2. It has no attributes that BUILD could alter."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: int, shape: Any, strides: Any, *_ignored: Any) -> TensorView:
        for numbers in (shape, strides):
            if not isinstance(numbers, tuple | list) or len(numbers) > limits.DIMS:
                raise pickle.UnpicklingError("a tensor has an impossible shape")
        return TensorView(storage, offset, tuple(shape), tuple(strides))


class _RebuildParameter:
    """Stand-in for torch._utils._rebuild_parameter: a parameter is its tensor."""

    __slots__ = ()

    def __call__(self, data: Any, *_ignored: Any) -> Any:
        return data


class _RebuildSubclass:
    """Stand-in for torch._tensor._rebuild_from_type_v2: a tensor with attributes is its tensor."""

    __slots__ = ()

    def __call__(self, rebuild: Any, _kind: Any, arguments: Any, _attributes: Any) -> Any:
        if not isinstance(rebuild, _RebuildTensor | _RebuildParameter) or not isinstance(arguments, tuple):
            raise pickle.UnpicklingError("a tensor with attributes has an impossible form")
        return rebuild(*arguments)


class _MakeTable:
    """Stand-in for OrderedDict, with or without pairs."""

    __slots__ = ()

    def __call__(self, pairs: Any = ()) -> OrderedDict[Any, Any]:
        if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
            raise pickle.UnpicklingError("a table has an impossible form")
        table: OrderedDict[Any, Any] = OrderedDict()
        filled(table, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
        return table


class _Inert:
    """Stand-in for what is no tensor: it takes any arguments and is nothing."""

    __slots__ = ()

    def __call__(self, *_ignored: Any) -> None:
        return None


def _allowed_globals() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): _MakeTable(),
        ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
        ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
        ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
        ("torch._utils", "_rebuild_parameter_with_state"): _RebuildParameter(),
        ("torch._tensor", "_rebuild_from_type_v2"): _RebuildSubclass(),
        ("torch.nn.parameter", "Parameter"): _Inert(),
    }
    for name in INERT:
        allowed["torch", name] = _Inert()
    for name, dtype in STORAGE_DTYPES.items():
        allowed["torch", name] = _StorageType(dtype)
    return allowed


ALLOWED = _allowed_globals()


def _find(path: Path, module: str, name: str) -> Any:
    """Return the stand-in for a name that a pickle asks for.

    Raises:
        UserError: weights do not need it.
    """
    if (module, name) in ALLOWED:
        return ALLOWED[module, name]
    asked = f"{module}.{name}"[:200]
    if module.startswith("torch") and name in UNSUPPORTED:
        raise UserError(
            f"{path} holds {UNSUPPORTED[name]} ({asked}), which are not weights of a GPT-2. Save them as float32, or "
            "get model.safetensors."
        )
    if module.startswith(("transformers.", "torch.nn.modules.")):
        raise UserError(
            f"{path} was rejected: its pickle asks for {asked}. It is a whole pickled model, whose loading runs code. "
            "Save only the weights: torch.save(model.state_dict(), FILE), or model.save_pretrained(DIRECTORY)."
        )
    raise UserError(
        f"{path} was rejected: its pickle asks for {asked}, which weights do not need and which may run code. Get the "
        "weights as model.safetensors."
    )


def _storage(saved_id: Any) -> Storage:
    """Return the storage that a pickle identifies by ("storage", type, key, device, elements[, view])."""
    if not isinstance(saved_id, tuple) or not 5 <= len(saved_id) <= 6:
        raise pickle.UnpicklingError("a storage has an impossible form")
    kind, storage_type, key, _device, num_elements, *rest = saved_id
    require_scalars([kind, key])
    if kind not in ("storage", b"storage") or not isinstance(storage_type, _StorageType):
        raise pickle.UnpicklingError(f"unknown object {kind!r:.60}")
    offset = rest[0][1] if rest and rest[0] is not None else 0
    if type(num_elements) is not int or type(offset) is not int or not 0 <= num_elements < limits.DIM or offset < 0:
        raise pickle.UnpicklingError("a storage has an impossible size")
    return Storage(str(key), storage_type.dtype, num_elements, offset)


def _load(stream: IO[bytes], path: Path) -> Any:
    return load(stream, partial(_find, path), _storage)


def open_torch(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a state dict that `torch.save` wrote. Their values stay in the file.

    A warning names entries that are no tensors.

    Raises:
        UserError: the file cannot be read, is truncated, names more than tensors need, or is not a state dict.
    """
    reject_lfs_pointer(path)
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            content, storage_offsets = _read_zip(stream, path) if is_zip else _read_legacy(stream, path)
        views = _table(content, path)
        file_bytes = path.stat().st_size
        if len(views) > limits.TENSORS:
            raise pickle.UnpicklingError(f"it has {len(views):,} tensors")
        located = {str(name): _locate(view, name, path, storage_offsets, file_bytes) for name, view in views.items()}
        if sum(math.prod(one.shape) * one.dtype.itemsize for one in located.values()) > 4 * file_bytes + SHARED_BYTES:
            raise pickle.UnpicklingError("its tensors are views that repeat few values many times")
        return located
    except UserError:
        raise
    except (zipfile.BadZipFile, OSError, *BROKEN_PICKLE) as error:
        raise UserError(
            f"{path} is truncated or not a PyTorch file of weights ({error or type(error).__name__}). "
            "Copy or download it again."
        ) from error


def _table(content: Any, path: Path) -> Mapping[Any, TensorView]:
    """Return the tensors of what a file holds, in the order of the file.

    Raises:
        UnpicklingError: it is no table.
        UserError: it has no tensors, or several tables of them.
    """
    if not isinstance(content, Mapping):
        raise pickle.UnpicklingError(f"it holds a {type(content).__name__}, not a table of tensors")
    tensors = {name: value for name, value in content.items() if isinstance(value, TensorView)}
    if tensors or not content:
        others = [f"{name} ({type(value).__name__})" for name, value in content.items() if name not in tensors]
        if others:
            log.warning("%s: these entries are no tensors and are ignored: %s.", path, _listed(others))
        return tensors
    tables = [name for name in NESTED if isinstance(content.get(name), Mapping)]
    tables = [name for name in tables if any(isinstance(value, TensorView) for value in content[name].values())]
    if len(tables) == 1:
        others = [str(name) for name in content if name != tables[0]]
        log.warning("%s: the weights are its entry %s%s.", path, tables[0],
                    f"; ignored: {_listed(others)}" if others else "")  # fmt: skip
        return _table(content[tables[0]], path)
    if {"state", "param_groups"} <= set(content):
        raise UserError(f"{path} is the state of an optimizer, not weights. Copy the weights that belong to it.")
    names = _listed([f"{name} ({type(value).__name__})" for name, value in content.items()])
    fault = f"several tables of weights: {', '.join(tables)}" if tables else f"no table of tensors, but {names}"
    raise UserError(f"{path} holds {fault}. Save only the weights: torch.save(model.state_dict(), FILE).")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(name[:100] for name in names[:20]) + more


def _views(content: Any) -> Iterator[TensorView]:
    """Yield all tensors of nested tables and lists, also those that are not read: their storages take space."""
    left, seen = [content], set()
    while left:
        one = left.pop()
        if isinstance(one, TensorView):
            yield one
        elif isinstance(one, Mapping | list | tuple) and id(one) not in seen:
            seen.add(id(one))  # a value that is referred to many times is visited once
            left += one.values() if isinstance(one, Mapping) else one


def _read_zip(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, int]]:
    """Return the unpickled object, and the byte offset of each storage in the file."""
    if _directory_bytes(stream) > DIRECTORY_BYTES:
        raise zipfile.BadZipFile("an archive of too many members")
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is not None and f"{root}constants.pkl" in entries:
            raise UserError(f"{path} is a program of TorchScript, which would run code. Get model.safetensors.")
        if root is None:
            raise zipfile.BadZipFile("a zip archive without data.pkl")
        for name in (f"{root}byteorder", f"{root}data.pkl"):
            if name in entries and entries[name].compress_type != zipfile.ZIP_STORED:
                raise UserError(f"{path} is compressed, which torch.save never does. Download it again.")
        if entries[f"{root}data.pkl"].file_size > limits.PICKLE_BYTES:
            raise zipfile.BadZipFile(f"its pickle has more than {limits.PICKLE_BYTES:,} bytes")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine. Get the weights as model.safetensors.")
        content = _load(io.BytesIO(archive.read(f"{root}data.pkl")), path)
    offsets = {}
    for name, entry in entries.items():
        if not name.startswith(f"{root}data/"):
            continue
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{path} is compressed, which torch.save never does. Download it again.")
        # name and extra field of the local header can differ in length from those of the central directory
        stream.seek(entry.header_offset + 26)
        name_bytes, extra_bytes = struct.unpack("<HH", stream.read(4))
        offsets[name.removeprefix(f"{root}data/")] = entry.header_offset + 30 + name_bytes + extra_bytes
    return content, offsets


def _directory_bytes(stream: IO[bytes]) -> int:
    """Return how long a zip archive says that its list of members is, from which zipfile makes objects of 600 bytes.

    The record is at the end of the file, before a comment of at most 64 kB (APPNOTE.TXT, 4.3.14 and 4.3.16).
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - (1 << 16) - 100))
    end = stream.read()
    stream.seek(0)
    at, at64 = end.rfind(b"PK\5\6"), end.rfind(b"PK\6\6")
    short = int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0
    long = int.from_bytes(end[at64 + 40 : at64 + 48], "little") if at64 >= 0 else 0
    return max(long, short if short < 0xFFFFFFFF else 0)


def _read_legacy(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, int]]:
    """Like `_read_zip`. Five pickles (magic number, version, system, object, storage keys) precede the storages."""
    if _load(stream, path) != LEGACY_MAGIC:
        raise pickle.UnpicklingError("its magic number is not torch.save's")
    _version, system = _load(stream, path), _load(stream, path)
    if not system.get("little_endian", True):
        raise UserError(f"{path} was written on a big-endian machine. Get the weights as model.safetensors.")
    content, keys = _load(stream, path), _load(stream, path)
    require_scalars(keys)
    dtypes = {view.storage.key: view.storage.dtype for view in _views(content) if isinstance(view.storage, Storage)}
    offsets = {}
    for key in map(str, keys):
        (num_elements,) = struct.unpack("<q", stream.read(8))
        offsets[key] = stream.tell()
        if key not in dtypes or num_elements < 0:
            raise pickle.UnpicklingError(f"storage {key} belongs to no tensor")
        stream.seek(num_elements * ITEM_BYTES.get(dtypes[key], 1), 1)
    return content, offsets


def _locate(view: Any, name: Any, path: Path, storage_offsets: dict[str, int], file_bytes: int) -> StoredTensor:
    """Return a view as a `StoredTensor`, after checking that it lies within its storage and within the file.

    Raises:
        UnpicklingError: it is not a tensor, has an impossible shape, or reaches beyond its storage.
        EOFError: it reaches beyond the file.
    """
    if not isinstance(view, TensorView) or not isinstance(view.storage, Storage):
        raise pickle.UnpicklingError(f"{name!r} is a {type(view).__name__}, not a tensor")
    numbers = (view.offset, *view.shape, *view.strides)
    if not all(type(number) is int and 0 <= number < limits.DIM for number in numbers) or len(view.shape) != len(
        view.strides
    ):
        raise pickle.UnpicklingError(f"{name!r:.60} has an impossible shape")
    storage = view.storage
    item_bytes = ITEM_BYTES.get(storage.dtype, 1)
    start = storage_offsets[storage.key] + (storage.offset + view.offset) * item_bytes
    stored = StoredTensor(path, start, storage.dtype, view.shape, view.strides)
    if view.offset + stored.num_elements > storage.num_elements:
        raise pickle.UnpicklingError(f"{name!r} reaches beyond its storage")
    if start + stored.num_elements * item_bytes > file_bytes:
        raise EOFError(f"the file ends before {name!r}")
    return stored
