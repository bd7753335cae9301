"""Spoilt copies of valid files: bytes of any format, values of JSON, opcodes of pickles, sealed manifests."""

# ruff: noqa: E501 - a row of a table is one line
from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gpt2x.checkpoint.manifest import seal
from tests.faults.seeds import zipped

NUMBERS = (0, 1, -1, 2, 7, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, 1 << 64, 10**30,
           0.5, -0.0, 1e308, float("nan"), float("inf"))  # fmt: skip
VALUES: tuple[Any, ...] = (None, True, False, "", "x", "../x", "/etc/passwd", "\0", "a" * 3000, [], {}, [[]], {"": None}, [None] * 50,
                           *NUMBERS)  # fmt: skip
CHUNKS = (b"\0" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x80" * 10, b"[" * 200, b'{"a":' * 100, b"PK\3\4", b"(" * 100, b"h\0" * 50,
          b"\x86" * 40, b"2\x86" * 40, b"&a [*a]", b"*a", b"<<: ", b"NaN", b"1e999", b"\xed\xa0\x80", b"\\ud800")  # fmt: skip

Mutation = Callable[[bytes, random.Random], bytes]


class Target(NamedTuple):
    """A file that is spoilt.

    Attributes:
        entry: the entry point that reads it.
        seed: the kind of the directory that holds it.
        file: its name there.
        given: what the entry point is given, within the directory.
        mutations: how it is spoilt.
    """

    entry: str
    seed: str
    file: str
    given: str
    mutations: tuple[Mutation, ...]

    @property
    def name(self) -> str:
        """The format, for reports."""
        return f"{self.seed}: {self.file}"


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat, move and overwrite."""
    spoilt = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at = draw.randrange(len(spoilt) + 1)
        kind = draw.randrange(7)
        if kind == 0 and spoilt:
            spoilt[at % len(spoilt)] ^= 1 << draw.randrange(8)
        elif kind == 1 and spoilt:
            spoilt[at % len(spoilt)] = draw.randrange(256)
        elif kind == 2:
            del spoilt[at:]
        elif kind == 3:
            del spoilt[at : at + draw.randrange(1, 64)]
        elif kind == 4:
            spoilt[at:at] = draw.choice(CHUNKS)
        elif kind == 5:
            chunk = draw.choice(CHUNKS)
            spoilt[at : at + len(chunk)] = chunk
        else:
            begin = draw.randrange(len(spoilt) + 1)
            spoilt[at:at] = spoilt[begin : begin + draw.randrange(1, 256)]
    return bytes(spoilt)


def _places(value: Any, places: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the (container, key) of each value, few of long lists and tables."""
    items = (
        list(value.items() if isinstance(value, dict) else enumerate(value)) if isinstance(value, dict | list) else []
    )
    for key, one in items[:40]:
        places.append((value, key))
        _places(one, places)
    return places


def _spoil(value: Any, draw: random.Random) -> Any:
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = _places(value, [])
        if not places:
            return draw.choice(VALUES)
        container, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[draw.choice(("", "x", "\0", "../x", "1"))] = container.pop(key)
        elif kind == 2:
            other, at = draw.choice(places)
            container[key] = json.loads(
                json.dumps(other.get(at) if isinstance(other, dict) else other[at % len(other)]) if other else "0"
            )
        else:
            container[key] = draw.choice(VALUES)
    return value


def of_json(content: bytes, draw: random.Random) -> bytes:
    """Replace, remove, rename and move values of a JSON text; sometimes repeat a key."""
    text = json.dumps(_spoil(json.loads(content), draw))
    if draw.randrange(8) == 0 and text.startswith("{") and ":" in text:
        text = text[:-1] + "," + text[1 : text.index(":")] + ": 1}"
    return text.encode()


def of_manifest(content: bytes, draw: random.Random) -> bytes:
    """Spoil a manifest, and seal it again."""
    manifest = _spoil(json.loads(content), draw)
    if isinstance(manifest, dict):
        manifest.pop("sha256", None)
        manifest["sha256"] = seal(manifest)
    return json.dumps(manifest).encode()


def of_header(content: bytes, draw: random.Random) -> bytes:
    """Spoil the header of a safetensors file, whose length stays right."""
    (length,) = struct.unpack("<Q", content[:8])
    header = of_json(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def of_pickle(content: bytes, draw: random.Random) -> bytes:
    """Spoil the pickle within a torch.save file, whose archive stays right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["a/data.pkl"] = of_bytes(members["a/data.pkl"], draw)
    return zipped(members)


def of_yaml(content: bytes, draw: random.Random) -> bytes:
    """Spoil the values of a YAML text."""
    return yaml.safe_dump(_spoil(yaml.safe_load(content), draw)).encode()


TARGETS = (
    Target("load=", "huggingface", "config.json", "", (of_bytes, of_json)),
    Target("load=", "huggingface", "model.safetensors", "", (of_bytes, of_header)),
    Target("load=", "huggingface", "tokenizer_config.json", "", (of_bytes, of_json)),
    Target("load=", "torch", "pytorch_model.bin", "", (of_bytes, of_pickle)),
    Target("load=", "checkpoint", "manifest.json", "", (of_bytes, of_manifest)),
    Target("checkpoint", "checkpoint", "manifest.json", "", (of_manifest,)),
    Target("resume=", "checkpoint", "manifest.json", "", (of_manifest,)),
    Target("adapters=", "adapter", "adapter_config.json", "", (of_bytes, of_json)),
    Target("adapters=", "adapter", "adapter_model.safetensors", "", (of_bytes, of_header)),
    Target("load=", "mindformers", "a.ckpt", "a.ckpt", (of_bytes,)),
    Target("load=", "mindformers", "a.yaml", "a.ckpt", (of_bytes, of_yaml)),
    Target("tokenizer.path=", "tokenizer", "tokenizer.json", "", (of_bytes, of_json)),
    Target("tokenizer.path=", "tokenizer", "tokenizer_config.json", "", (of_bytes, of_json)),
    Target("tokenizer.path=", "generic", "tokenizer.json", "", (of_bytes, of_json)),
    Target("tokenizer.path=", "vocabulary", "vocab.json", "", (of_bytes, of_json)),
    Target("tokenizer.path=", "vocabulary", "merges.txt", "", (of_bytes,)),
    Target("template=", "texts", "template.yaml", "template.yaml", (of_bytes, of_yaml)),
    Target("dataset.path=", "texts", "a.jsonl", "a.jsonl", (of_bytes,)),
    Target("dataset.path=", "texts", "a.json", "a.json", (of_bytes, of_json)),
    Target("dataset.path=", "texts", "a.csv", "a.csv", (of_bytes,)),
    Target("dataset.path=", "texts", "a.tsv", "a.tsv", (of_bytes,)),
    Target("dataset.path=", "texts", "a.txt.gz", "a.txt.gz", (of_bytes,)),
    Target("dataset.path=", "texts", "a.parquet", "a.parquet", (of_bytes,)),
    Target("prompts_file=", "texts", "prompts.jsonl", "prompts.jsonl", (of_bytes,)),
)  # fmt: skip


def spoil(target: Target, folder: Path, original: bytes, number: int) -> Path:
    """Write the mutation `number` of a target, and return what its entry point is given."""
    draw = random.Random(number)
    (folder / target.file).write_bytes(draw.choice(target.mutations)(original, draw))
    return folder / target.given if target.given else folder
