"""The files of a checkpoint: each rank writes its slices, rank 0 the rest, with the manifest last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from gpt2x.checkpoint.files import sha256
from gpt2x.checkpoint.manifest import FORMAT, MANIFEST, VERSION, coverage_fault, plain, seal
from gpt2x.checkpoint.tensors import Shape, Values, write_safetensors
from gpt2x.config import ModelConfig
from gpt2x.runtime.files import new_directory, replaced
from gpt2x.runtime.json_text import encoded

FILE_BYTES = 1 << 31  # a larger file is split, between tensors


@dataclass(frozen=True)
class Sliced:
    """The boxes that a rank writes of a logical tensor, each as (start in the logical tensor, values)."""

    shape: Shape
    parts: list[tuple[Shape, Values]]


Tensors = Mapping[str, Mapping[str, Values | Sliced]]  # group -> name -> values
Slice = dict[str, Any]  # file, start, shape, key
Index = dict[str, dict[str, Any]]  # name -> shape, dtype, slices


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds beside its tensors.

    Attributes:
        model: the model's configuration, with `vocab_size` set.
        run_config: the resolved configuration as plain data.
        loop_state: plain data. Floats are read back bit for bit (Python writes the shortest text that allows it).
        tokenizer_dir_writer: writes the tokenizer's files into the (existing) directory that is its argument.
        special_ids: the model's BOS, EOS and PAD as plain data; None if they are the tokenizer's.
    """

    model: ModelConfig
    run_config: dict[str, Any]
    loop_state: dict[str, Any]
    tokenizer_dir_writer: Callable[[Path], object] | None
    special_ids: dict[str, Any] | None = None


def save(
    directory: Path,
    *,
    tensors: Tensors,
    model: ModelConfig,
    run_config: dict[str, Any],
    loop_state: dict[str, Any],
    tokenizer_dir_writer: Callable[[Path], object] | None,
    special_ids: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint from one process, completely or not at all; runs have `gpt2x.checkpoint.writer`.

    Args:
        directory: the checkpoint, such as `RUN/checkpoints/step_100`; one that exists is replaced at the end.
        tensors: group -> name -> values, whole or as a `Sliced`, in numpy dtypes.
        model: this and the others: see `Content`.
        run_config: see `Content`.
        loop_state: see `Content`.
        tokenizer_dir_writer: see `Content`.
        special_ids: see `Content`.

    Raises:
        UserError: it cannot be written. The files that existed before are unchanged.
        ValueError: slices overlap, or do not cover their tensor.
    """
    with new_directory(directory) as temporary:
        write_slices(temporary, tensors, 0, 1)
        content = Content(model, run_config, loop_state, tokenizer_dir_writer, special_ids)
        complete(temporary, read_indexes(temporary, 1), content)


def write_slices(folder: Path, tensors: Tensors, rank: int, world_size: int) -> None:
    """Write a rank's files, GROUP.safetensors or GROUP-00002-of-00008.safetensors, then an index of their slices.

    Raises:
        OSError: they cannot be written.
    """
    groups: dict[str, Index] = {}
    hashes: dict[str, str] = {}
    for group, entries in tensors.items():
        stem = group if world_size == 1 else f"{group}-{numbered(rank, world_size)}"
        groups[group], boxes, slices = _index_of(entries)
        files = split(boxes)
        for number, keys in enumerate(files):
            part = "" if len(files) == 1 else f".part-{numbered(number, len(files))}"
            file = f"{stem}{part}.safetensors"
            hashes[file] = write_safetensors(folder / file, {key: boxes[key] for key in keys})
            for key in keys:
                slices[key]["file"] = file
    content = json.dumps({"groups": groups, "hashes": hashes})
    with replaced(_index_path(folder, rank, world_size)) as index:
        index.write_text(content, encoding="utf-8")


def _index_of(entries: Mapping[str, Values | Sliced]) -> tuple[Index, dict[str, Values], dict[str, Slice]]:
    """Return the index of a rank's tensors, and by key in the file the values and their (shared) entry in the index."""
    index: Index = {}
    boxes: dict[str, Values] = {}
    slices: dict[str, Slice] = {}
    for name, entry in entries.items():
        if not isinstance(entry, Sliced):
            entry = Sliced(entry.shape, [((0,) * len(entry.shape), entry)])
        index[name] = {"shape": list(entry.shape), "dtype": None, "slices": []}
        for start, values in entry.parts:
            piece: Slice = {"file": "", "start": [int(at) for at in start], "shape": list(values.shape)}
            key = name
            if tuple(values.shape) != tuple(entry.shape):
                key = piece["key"] = f"{name}[{','.join(map(str, start))}]"
            index[name]["dtype"] = values.dtype.name
            index[name]["slices"].append(piece)
            boxes[key], slices[key] = values, piece
    return index, boxes, slices


def missing_indexes(folder: Path, world_size: int) -> list[Path]:
    """Return the indexes of the ranks that have not written all of their slices yet, as seen here."""
    paths = (_index_path(folder, rank, world_size) for rank in range(world_size))
    return [path for path in paths if not path.exists()]


def read_indexes(folder: Path, world_size: int) -> dict[Path, dict[str, Any]]:
    """Return the index of each rank, by its file, in the order of ranks.

    Raises:
        OSError: one cannot be read.
    """
    paths = (_index_path(folder, rank, world_size) for rank in range(world_size))
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def complete(folder: Path, indexes: Mapping[Path, dict[str, Any]], content: Content) -> None:
    """Write everything but tensors, merge the indexes of all ranks into the manifest, and delete their files.

    After an error it may be called again.

    Raises:
        OSError: something cannot be written.
        ValueError: slices overlap, or do not cover their tensor.
    """
    groups, hashes = _merge(indexes.values())
    if content.tokenizer_dir_writer is not None:
        (folder / "tokenizer").mkdir(exist_ok=True)
        content.tokenizer_dir_writer(folder / "tokenizer")
    plain_config = json.loads(json.dumps(content.run_config, default=plain))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain_config, sort_keys=False), encoding="utf-8")
    (folder / MANIFEST).unlink(missing_ok=True)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    names = [name for name in names if folder / name not in indexes]
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(content.model),
        "run_config": encoded(plain_config),
        "loop_state": encoded(content.loop_state),
        "special_ids": encoded(content.special_ids),
        "groups": groups,
        "files": {
            name: {"size": (folder / name).stat().st_size, "sha256": hashes.get(name) or sha256(folder / name)}
            for name in names
        },
    }
    manifest["sha256"] = seal(manifest)
    (folder / MANIFEST).write_text(
        json.dumps(manifest, indent=1, default=plain, allow_nan=False) + "\n", encoding="utf-8"
    )
    for path in indexes:
        path.unlink(missing_ok=True)


def split(boxes: Mapping[str, Values]) -> list[list[str]]:
    """Distribute boxes over files, in order; a file has at most 2 GiB or one box. Return the names in each file."""
    files: list[list[str]] = []
    size = 0
    for name, values in boxes.items():
        num_bytes = prod(values.shape) * values.dtype.itemsize
        if not files or size + num_bytes > FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += num_bytes
    return files


def _merge(indexes: Iterable[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, str]]:
    groups: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for rank, index in enumerate(indexes):
        hashes |= index["hashes"]
        for group, entries in index["groups"].items():
            merged = groups.setdefault(group, {})
            for name, entry in entries.items():
                first = merged.setdefault(name, entry | {"slices": []})  # of the first rank that writes the tensor
                first["dtype"] = first["dtype"] or entry["dtype"]
                first["slices"] += entry["slices"]
                if entry["shape"] != first["shape"] or entry["dtype"] not in (None, first["dtype"]):
                    raise ValueError(f"rank {rank} has a different shape or dtype of {group} {name} than others")
    for group, entries in groups.items():
        for name, entry in entries.items():
            if fault := coverage_fault(tuple(entry["shape"]), entry["slices"]):
                raise ValueError(f"the slices of {group} {name} {tuple(entry['shape'])} {fault}")
    return groups, hashes


def numbered(position: int, count: int) -> str:
    """Return the number of a file in Hugging Face's form: (1, 8) -> 00002-of-00008."""
    return f"{position + 1:05}-of-{count:05}"


def _index_path(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"index-{numbered(rank, world_size)}.json"
