"""Read the tensors of a `torch.save` file without torch, and without running the code that a pickle can name.

There are two formats (torch/serialization.py): a zip archive of uncompressed members (`_save`, torch >= 1.6), and the
older sequence of pickles followed by raw storages (`_legacy_save`). In both, the pickle only describes tensors as views
of storages. The values are memory-mapped from the file.

Python's unpickler calls any importable function that a pickle names. Here, `find_class` returns inert, immutable
stand-ins for the few names that a state dict needs, and rejects every other name.

As transformers does, only tensors of the table are read. A table within a table, as Lightning, DeepSpeed and nanoGPT
write it, is read if it is the only one by its name.
"""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from gpt2x.checkpoint.tensors import StoredTensor, reject_lfs_pointer
from gpt2x.errors import UserError

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
MAX_DEPTH = 20  # of tables within tables
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
        return rebuild(*arguments)


class _Inert:
    """Stand-in for what is no tensor: it takes any arguments and is nothing."""

    __slots__ = ()

    def __call__(self, *_ignored: Any) -> None:
        return None


def _allowed_globals() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
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


class _StateDictUnpickler(pickle.Unpickler):
    """The restricted unpickler (https://docs.python.org/3/library/pickle.html#restricting-globals)."""

    def __init__(self, stream: IO[bytes], path: Path):
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self._allowed = _allowed_globals()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            if module.startswith("torch") and name in UNSUPPORTED:
                raise UserError(
                    f"{self._path} holds {UNSUPPORTED[name]} ({module}.{name}), which are not weights of a GPT-2. "
                    "Save them as float32, or get model.safetensors."
                )
            if module.startswith(("transformers.", "torch.nn.modules.")):
                raise UserError(
                    f"{self._path} was rejected: its pickle asks for {module}.{name}. It is a whole pickled model, "
                    "whose loading runs code. Save only the weights: torch.save(model.state_dict(), FILE), or "
                    "model.save_pretrained(DIRECTORY)."
                )
            raise UserError(
                f"{self._path} was rejected: its pickle asks for {module}.{name}, which weights do not need and which "
                "may run code. Get the weights as model.safetensors."
            )
        return self._allowed[module, name]

    def persistent_load(self, saved_id: Any) -> Storage:
        kind, storage_type, key, _location, num_elements, *rest = saved_id
        if kind not in ("storage", b"storage") or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown object {kind!r}")
        offset = rest[0][1] if rest and rest[0] is not None else 0
        return Storage(str(key), storage_type.dtype, int(num_elements), int(offset))


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
        return {str(name): _locate(view, name, path, storage_offsets, file_bytes) for name, view in views.items()}
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
            log.warning("%s: these entries are no tensors and are ignored: %s.", path, ", ".join(others))
        return tensors
    tables = [name for name in NESTED if isinstance(content.get(name), Mapping)]
    tables = [name for name in tables if any(isinstance(value, TensorView) for value in content[name].values())]
    if len(tables) == 1:
        others = [str(name) for name in content if name != tables[0]]
        log.warning("%s: the weights are its entry %s%s.", path, tables[0],
                    f"; ignored: {', '.join(others)}" if others else "")  # fmt: skip
        return _table(content[tables[0]], path)
    if {"state", "param_groups"} <= set(content):
        raise UserError(f"{path} is the state of an optimizer, not weights. Copy the weights that belong to it.")
    names = ", ".join(f"{name} ({type(value).__name__})" for name, value in content.items())
    fault = f"several tables of weights: {', '.join(tables)}" if tables else f"no table of tensors, but {names}"
    raise UserError(f"{path} holds {fault}. Save only the weights: torch.save(model.state_dict(), FILE).")


def _views(content: Any, depth: int = 0) -> Iterator[TensorView]:
    """Yield all tensors of nested tables and lists, also those that are not read: their storages take space."""
    if isinstance(content, TensorView):
        yield content
    elif depth < MAX_DEPTH and isinstance(content, Mapping):
        for value in content.values():
            yield from _views(value, depth + 1)
    elif depth < MAX_DEPTH and isinstance(content, list | tuple):
        for value in content:
            yield from _views(value, depth + 1)


def _read_zip(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, int]]:
    """Return the unpickled object, and the byte offset of each storage in the file."""
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is not None and f"{root}constants.pkl" in entries:
            raise UserError(f"{path} is a program of TorchScript, which would run code. Get model.safetensors.")
        if root is None:
            raise zipfile.BadZipFile("a zip archive without data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise UserError(f"{path} was written on a big-endian machine. Get the weights as model.safetensors.")
        with archive.open(f"{root}data.pkl") as pickled:
            content = _StateDictUnpickler(pickled, path).load()
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


def _read_legacy(stream: IO[bytes], path: Path) -> tuple[Any, dict[str, int]]:
    """Like `_read_zip`. Five pickles (magic number, version, system, object, storage keys) precede the storages."""
    if _StateDictUnpickler(stream, path).load() != LEGACY_MAGIC:
        raise pickle.UnpicklingError("its magic number is not torch.save's")
    _version, system = _StateDictUnpickler(stream, path).load(), _StateDictUnpickler(stream, path).load()
    if not system.get("little_endian", True):
        raise UserError(f"{path} was written on a big-endian machine. Get the weights as model.safetensors.")
    content = _StateDictUnpickler(stream, path).load()
    keys = _StateDictUnpickler(stream, path).load()
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
    if not all(isinstance(number, int) and number >= 0 for number in numbers) or len(view.shape) != len(view.strides):
        raise pickle.UnpicklingError(f"{name!r} has the impossible shape {view.shape}")
    storage = view.storage
    item_bytes = ITEM_BYTES.get(storage.dtype, 1)
    start = storage_offsets[storage.key] + (storage.offset + view.offset) * item_bytes
    stored = StoredTensor(path, start, storage.dtype, view.shape, view.strides)
    if view.offset + stored.num_elements > storage.num_elements:
        raise pickle.UnpicklingError(f"{name!r} reaches beyond its storage")
    if start + stored.num_elements * item_bytes > file_bytes:
        raise EOFError(f"the file ends before {name!r}")
    return stored
