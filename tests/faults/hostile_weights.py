"""Hostile files of weights and adapters: what claims more than it holds, names what is not its own, or never ends."""

# ruff: noqa: E501 - a row of a table is one line
from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gpt2x.convert.protobuf import varint
from tests.faults import seeds
from tests.faults.seeds import edited, resealed, safetensors_bytes, tensor_opcodes, text_opcode, zipped


class Case(NamedTuple):
    """A hostile input.

    Attributes:
        entry: the entry point that reads it.
        name: what it is.
        write: writes it into a new folder, and returns what the entry point is given.
        is_accepted: whether it may be read without a message, because reading it does no harm.
    """

    entry: str
    name: str
    write: Callable[[Path], Any]
    is_accepted: bool = False


def _pickle(name: str, content: Callable[[], bytes] | bytes, entry: str = "load=", **options: Any) -> Case:
    """A pickle within a torch.save file of the current format."""

    def write(folder: Path) -> Path:
        path = seeds.copy("torch", folder / "m")
        made = content() if callable(content) else content
        (path / "pytorch_model.bin").write_bytes(zipped({"a/data.pkl": made, "a/data/0": b"\0" * 64}))
        return path

    return Case(entry, f"pickle: {name}", write, **options)


def _bin(name: str, content: Callable[[], bytes] | bytes) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("torch", folder / "m")
        (path / "pytorch_model.bin").write_bytes(content() if callable(content) else content)
        return path

    return Case("load=", f"torch file: {name}", write)


def _named(module: str, name: str, protocol: int = 2) -> bytes:
    """A pickle that calls a function with a text."""
    asked = f"c{module}\n{name}\n".encode()
    if protocol == 4:
        asked = (
            b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"
        )
    return b"\x80" + bytes([protocol]) + asked + b"(" + text_opcode("touch /tmp/executed") + b"tR."


NAMES = (("os", "system"), ("posix", "system"), ("builtins", "eval"), ("builtins", "exec"), ("builtins", "__import__"),
         ("subprocess", "Popen"), ("builtins", "getattr"), ("operator", "attrgetter"), ("runpy", "_run_code"),
         ("torch", "load"), ("torch.serialization", "load"), ("numpy.core.multiarray", "_reconstruct"),
         ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("collections", "OrderedDict.fromkeys"),
         ("pickle", "loads"), ("ctypes", "CDLL"), ("webbrowser", "open"), ("pty", "spawn"), ("nt", "system"),
         ("importlib", "import_module"), ("code", "interact"), ("timeit", "timeit"))  # fmt: skip
TABLE = b"\x80\x02}" + text_opcode("a")
NEST = b"\x86" * 1  # TUPLE2


def _shared_tuples(depth: int) -> bytes:
    """t = (t, t), `depth` times: of 2 ** depth leaves, in 2 * depth bytes."""
    return b")" + b"2\x86" * depth


PICKLES = [
    *(_pickle(f"calls {module}.{name}, protocol {protocol}", _named(module, name, protocol))
      for module, name in NAMES for protocol in (2, 4)),
    _pickle("140 bytes whose memo has the index 2 ** 27", b"\x80\x02}r\xff\xff\xff\x07."),
    _pickle("a memo of the index 2 ** 32 - 1", b"\x80\x02}r\xff\xff\xff\xff.", is_accepted=False),
    _pickle("nested tuples as a key", b"\x80\x02}" + _shared_tuples(60) + b"K\x01s."),
    _pickle("nested tuples as a value", TABLE + _shared_tuples(60) + b"s."),
    _pickle("nested tuples as the whole", b"\x80\x02" + _shared_tuples(60) + b"."),
    _pickle("nested tuples as a storage's key", TABLE + tensor_opcodes("0", (2,), (1,), 16).replace(
        text_opcode("0"), _shared_tuples(60)) + b"s."),
    _pickle("nested tuples in a frozenset", b"\x80\x04(" + _shared_tuples(60) + b"\x91."),
    _pickle("nested tuples in a set", b"\x80\x04\x8f(" + _shared_tuples(60) + b"\x90."),
    _pickle("a list that holds itself", b"\x80\x02]q\x00h\x00a."),
    _pickle("a table that holds itself", b"\x80\x02}q\x00" + text_opcode("model") + b"h\x00s."),
    _pickle("a million nested lists", lambda: b"\x80\x02" + b"]" * 900_000 + b"a" * 899_999 + b"."),
    _pickle("ten million empty dicts", lambda: b"\x80\x02(" + b"}" * 10_000_000 + b"t."),
    _pickle("a text of 4 GB", b"\x80\x02X\xff\xff\xff\xffabc."),
    _pickle("bytes of 2 ** 62", b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc."),
    _pickle("a frame of 2 ** 62", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"}.", is_accepted=False),
    _pickle("a number of a million digits", lambda: b"\x80\x02L" + b"9" * 1_000_000 + b"L\n."),
    _pickle("a number of 2 ** 31 bytes", b"\x80\x02\x8b\xff\xff\xff\x7fabc."),
    _pickle("a pickle of 64 MB", lambda: b"\x80\x02" + b"X" + struct.pack("<I", 64 << 20) + b"a" * (64 << 20) + b"."),
    _pickle("an object of an extension registry", b"\x80\x02\x82\x01."),
    _pickle("protocol 255", b"\x80\xff}.", is_accepted=False),
    _pickle("an out-of-band buffer", b"\x80\x05\x97."),
    _pickle("an instance by INST", b"(" + text_opcode("x") + b"ios\nsystem\n."),
    _pickle("an instance by OBJ", b"(cos\nsystem\n" + text_opcode("x") + b"o."),
    _pickle("NEWOBJ_EX", b"\x80\x04ccollections\nOrderedDict\n)}\x92."),
    _pickle("BUILD of a stand-in", b"\x80\x02ctorch\nFloatStorage\n}" + text_opcode("a") + b"K\x01sb."),
    _pickle("a tensor of a shape of 10 ** 6 dims", lambda: TABLE + tensor_opcodes("0", (1,) * 1_000_000, (1,), 16)
            + b"s."),
    _pickle("a tensor of 10 ** 15 values", TABLE + tensor_opcodes("0", (10**15,), (1,), 10**15) + b"s."),
    _pickle("a tensor of 10 ** 12 values that are one", TABLE + tensor_opcodes("0", (10**6, 10**6), (0, 0), 16) + b"s."),
    _pickle("a tensor of negative strides", TABLE + tensor_opcodes("0", (4,), (-1,), 16, 3) + b"s."),
    _pickle("a tensor before its storage", TABLE + tensor_opcodes("0", (4,), (1,), 16, -8) + b"s."),
    _pickle("a tensor beyond its storage", TABLE + tensor_opcodes("0", (17,), (1,), 16) + b"s."),
    _pickle("a storage beyond the file", TABLE + tensor_opcodes("0", (10**6,), (1,), 10**6) + b"s."),
    _pickle("a storage that is not there", TABLE + tensor_opcodes("../../etc/passwd", (1,), (1,), 1) + b"s."),
    _pickle("no end", b"\x80\x02}"),
    _pickle("an empty stack", b"\x80\x02."),
    _pickle("a mark without values", b"\x80\x02u."),
]  # fmt: skip


def _bomb() -> bytes:
    return zipped(
        {"a/data.pkl": b"\x80\x02X" + struct.pack("<I", 512 << 20) + b"a" * (512 << 20) + b"."}, zipfile.ZIP_DEFLATED
    )


def _members(count: int) -> bytes:
    """A zip archive whose list names the same empty member again and again."""
    archive = zipped({"a/data.pkl": b"\x80\x02}."})
    at = archive.rindex(b"PK\5\6")
    start = archive.index(b"PK\1\2")
    entry = archive[start:at]
    end = b"PK\5\6\0\0\0\0\xff\xff\xff\xff" + struct.pack("<LLH", len(entry) * count, start, 0)
    return archive[:start] + entry * count + end


TORCH = [
    _bin("a deflated pickle of 512 MB", _bomb),
    _bin("a deflated byte order", lambda: zipped({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"l" * (400 << 20)}, zipfile.ZIP_DEFLATED)),
    _bin("a deflated storage", lambda: zipped({"a/data.pkl": b"\x80\x02}.", "a/data/0": b"0" * 1000}, zipfile.ZIP_DEFLATED)),
    _bin("a zip archive that names a million members", lambda: _members(1_000_000)),
    _bin("a zip archive without a pickle", lambda: zipped({"a/b": b""})),
    _bin("a program of TorchScript", lambda: zipped({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b""})),
    _bin("an older file whose magic is a nested tuple", _shared_tuples(60) + b"."),
    _bin("an older file without an end", pickle.dumps(0x1950A86A20F9469CFC6C, 2)),
    _bin("an older file of 10 ** 6 keys", lambda: b"".join(pickle.dumps(one, 2) for one in (
        0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, list(range(300_000))))),
    _bin("an older file of shared lists", lambda: b"".join(pickle.dumps(one, 2) for one in (
        0x1950A86A20F9469CFC6C, 1001, {})) + b"\x80\x02]" + b"(" + b"2" * 0 + b"e" + b"".join(
            b"q\x00]" + b"(" + b"h\x00" * 200 + b"e" for _ in range(30)) + b"." + pickle.dumps([], 2)),
    _bin("an empty file", b""),
    _bin("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\n"),
]  # fmt: skip


def _tensors(name: str, content: Callable[[], bytes] | bytes, entry: str = "load=") -> Case:
    kind, file = {"load=": ("huggingface", "model.safetensors"),
                  "adapters=": ("adapter", "adapter_model.safetensors")}[entry]  # fmt: skip

    def write(folder: Path) -> Path:
        path = seeds.copy(kind, folder / "m")
        (path / file).write_bytes(content() if callable(content) else content)
        return path

    return Case(entry, f"safetensors: {name}", write)


def _one(**entry: Any) -> bytes:
    return safetensors_bytes({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}, b"\0" * 4)


SAFETENSORS = [
    case
    for entry in ("load=", "adapters=")
    for case in (
        _tensors("a header of 2 ** 63 bytes", safetensors_bytes({}, length=1 << 63), entry),
        _tensors("a header of 90 MB of spaces", lambda: safetensors_bytes(b"{}" + b" " * (90 << 20)), entry),
        _tensors("a header of 30 MB of empty objects", lambda: safetensors_bytes(b'{"a":[' + b"{}," * (10 << 20) + b"{}]}"),
                 entry),
        _tensors("a header nested 100,000 deep", safetensors_bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), entry),
        _tensors("a header that is a list", safetensors_bytes([1, 2]), entry),
        _tensors("a header that is no text", safetensors_bytes(b"\xff\xfe{}"), entry),
        _tensors("a shape of 10 ** 5 dims", _one(shape=[1] * 100_000), entry),
        _tensors("a shape of 2 ** 62", _one(shape=[1 << 62, 4]), entry),
        _tensors("a negative shape", _one(shape=[-1]), entry),
        _tensors("a shape of NaN", _one(shape=[float("nan")]), entry),
        _tensors("an unknown dtype", _one(dtype="F128"), entry),
        _tensors("a dtype that is a list", _one(dtype=["F32"]), entry),
        _tensors("no dtype", safetensors_bytes({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), entry),
        _tensors("offsets beyond the file", _one(data_offsets=[0, 1 << 40]), entry),
        _tensors("offsets backwards", _one(data_offsets=[4, 0]), entry),
        _tensors("overlapping tensors", safetensors_bytes(
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4), entry),
        _tensors("a name twice", safetensors_bytes(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\0" * 4), entry),
        _tensors("300,000 tensors", lambda: safetensors_bytes(
            {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(300_000)}), entry),
        _tensors("a name of a megabyte", lambda: safetensors_bytes(
            {"n" * (1 << 20): {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4), entry),
        _tensors("7 bytes", b"\1" * 7, entry),
    )
]  # fmt: skip


def _ckpt(name: str, content: Callable[[], bytes] | bytes, **options: Any) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("mindformers", folder / "m") / "a.ckpt"
        path.write_bytes(content() if callable(content) else content)
        return path

    return Case("load=", f"MindSpore's file: {name}", write, **options)


def _message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def _record(
    name: bytes = b"a", dims: bytes = b"\x08\x01", dtype: bytes = b"Float32", values: bytes = b"\0" * 4
) -> bytes:
    tensor = dims + _message(2, dtype) + _message(3, values)
    return _message(1, _message(1, name) + _message(2, tensor))


def _strategy(name: str, item: Any, count: int = 1) -> Case:
    def write(folder: Path) -> Path:
        ckpt = seeds.copy("mindformers", folder / "m") / "a.ckpt"
        rank = folder / "run" / "rank_0"
        rank.mkdir(parents=True)
        os.rename(ckpt, rank / "a.ckpt")
        content = item if isinstance(item, dict) else {}
        strategy = {
            "parallel_layout_item": {f"p{i}": content for i in range(count)} | {"backbone.layernorm.gamma": content}
        }
        text = json.dumps(strategy) if isinstance(item, dict) else item
        (folder / "run" / "strategy").mkdir()
        (folder / "run" / "strategy" / "ckpt_strategy_rank_0.json").write_text(text)
        return folder / "run"

    return Case("load=", f"MindSpore's strategy: {name}", write)


MINDSPORE = [
    _ckpt("a length of 2 ** 63", b"\x0a" + varint(1 << 63) + b"abc"),
    _ckpt("a number that never ends", b"\x0a" + b"\xff" * 1000),
    _ckpt("dims of 30 MB of packed numbers", lambda: _record(dims=_message(1, b"\x01" * (30 << 20)))),
    _ckpt("ten million dims", lambda: _record(dims=b"\x08\x01" * 10_000_000)),
    _ckpt("ten million empty records", lambda: b"\x0a\x00" * 10_000_000),
    _ckpt("a million records", lambda: b"".join(_record(b"a") for _ in range(1_000_000))),
    _ckpt("ten million fields in a record", lambda: _message(1, b"\x08\x01" * 10_000_000)),
    _ckpt("a shape of 2 ** 60", _record(dims=b"\x08" + varint(1 << 60))),
    _ckpt("a negative shape", _record(dims=b"\x08" + varint((1 << 64) - 4))),
    _ckpt("an unknown dtype", _record(dtype=b"Float128")),
    _ckpt("a name that is no text", _record(name=b"\xff\xfe")),
    _ckpt("a name of 30 MB", lambda: _record(name=b"a" * (30 << 20))),
    _ckpt("a checksum of nothing", b"crc_num" + b"\0" * 10),
    _ckpt("a layer of the number 10 ** 9", lambda: _record(b"backbone.blocks.1000000000.layernorm1.gamma")),
    _strategy("a million devices", {"dev_matrix": [1 << 20], "tensor_map": [0]}, 2000),
    _strategy("2 ** 60 devices", {"dev_matrix": [1 << 60], "tensor_map": [0]}),
    _strategy("30,000 dims of devices", {"dev_matrix": [1] * 30_000, "tensor_map": [0]}),
    _strategy("a device matrix of texts", {"dev_matrix": ["a"], "tensor_map": [0]}),
    _strategy("a map of NaN", {"dev_matrix": [2], "tensor_map": [float("nan")]}),
    _strategy("nested 100,000 deep", "[" * 100_000),
    _strategy("30 MB of lists", "[" + "[]," * (10 << 20) + "[]]"),
]  # fmt: skip

SOURCES = [*PICKLES, *TORCH, *SAFETENSORS, *MINDSPORE]
EDITS = (edited, resealed)  # what the other tables use
