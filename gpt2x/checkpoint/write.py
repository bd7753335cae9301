"""Writes checkpoints: each rank its slices, one of them the rest, the manifest last."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import yaml

from gpt2x.checkpoint.files import sha256
from gpt2x.checkpoint.store import FORMAT, MANIFEST, VERSION, coverage_fault, plain, seal
from gpt2x.checkpoint.tensors import Shape, Values, write_safetensors
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.runtime.files import Agree, new_directory, together

FILE_BYTES = 1 << 31  # a larger file is split, between tensors


@dataclass(frozen=True)
class Sliced:
    """What a rank writes of a logical tensor: boxes, each as (start in the logical tensor, values)."""

    shape: Shape
    parts: list[tuple[Shape, Values]]


Tensors = Mapping[str, Mapping[str, Values | Sliced]]  # group to name


def save(
    directory: Path,
    *,
    tensors: Tensors,
    model: ModelConfig,
    run_config: dict[str, Any],
    loop_state: dict[str, Any],
    tokenizer_dir_writer: Callable[[Path], object] | None,
    rank: int = 0,
    world_size: int = 1,
    agree: Agree = lambda is_well: is_well,
) -> None:
    """Writes a checkpoint so that it is there completely or not at all.

    Every rank calls it, and returns when the checkpoint is in its place.

    Args:
        directory: Its final place, e.g. `RUN/checkpoints/step_100`; one that exists is replaced at the end. All
            ranks see the same file system.
        tensors: Group to name to values, whole or as a `Sliced`; what a rank owns nothing of, it leaves out. Each
            box of a tensor comes from exactly one rank. numpy dtypes only.
        model: With `vocab_size` known. This and what follows: rank 0's counts.
        run_config: The resolved configuration, as plain data.
        loop_state: Plain data; floats come back bit for bit (Python writes the shortest text that does).
        tokenizer_dir_writer: Writes the tokenizer's files into the directory it is given, which exists.
        rank: Of this process.
        world_size: Number of processes.
        agree: Collective and a barrier: whether `is_well` is true on every rank.

    Raises:
        UserError: The system refused to write, here or on another rank; what was there before is unchanged.
        ValueError: Slices overlap, or do not cover their tensor.
    """
    with new_directory(directory, rank=rank, agree=None if world_size == 1 else agree) as temporary:
        with together(agree, directory):
            write_slices(temporary, tensors, rank, world_size)
        if rank == 0:
            complete(temporary, world_size, model, run_config, loop_state, tokenizer_dir_writer)


def write_slices(folder: Path, tensors: Tensors, rank: int, world_size: int) -> None:
    """A rank's files, GROUP.safetensors or GROUP-00002-of-00008.safetensors, and the index of what they hold.

    Raises:
        OSError: They cannot be written.
        UserError: The folder is not there: rank 0 made it elsewhere.
    """
    _require(folder)
    groups: dict[str, dict[str, Any]] = {}
    hashes: dict[str, str] = {}
    for group, entries in tensors.items():
        stem = group if world_size == 1 else f"{group}-{numbered(rank, world_size)}"
        index: dict[str, Any] = {}
        groups[group] = index
        boxes: dict[str, Values] = {}
        places: dict[str, dict[str, Any]] = {}
        for name, entry in entries.items():
            if not isinstance(entry, Sliced):
                entry = Sliced(entry.shape, [((0,) * len(entry.shape), entry)])
            index[name] = {"shape": list(entry.shape), "dtype": None, "slices": []}
            for start, values in entry.parts:
                is_whole = tuple(values.shape) == tuple(entry.shape)
                key = name if is_whole else f"{name}[{','.join(map(str, start))}]"
                place = {"file": "", "start": [int(at) for at in start], "shape": list(values.shape)}
                if not is_whole:
                    place["key"] = key
                index[name]["dtype"] = values.dtype.name
                index[name]["slices"].append(place)
                boxes[key], places[key] = values, place
        files = split(boxes)
        for number, keys in enumerate(files):
            part = "" if len(files) == 1 else f".part-{numbered(number, len(files))}"
            file = f"{stem}{part}.safetensors"
            hashes[file] = write_safetensors(folder / file, {key: boxes[key] for key in keys})
            for key in keys:
                places[key]["file"] = file
    content = json.dumps({"groups": groups, "hashes": hashes})
    _index(folder, rank, world_size).write_text(content, encoding="utf-8")


def complete(
    folder: Path,
    world_size: int,
    model: ModelConfig,
    run_config: dict[str, Any],
    loop_state: dict[str, Any],
    tokenizer_dir_writer: Callable[[Path], object] | None,
) -> None:
    """Adds what is not tensors; then merges the indexes of all ranks into the manifest.

    Raises:
        UserError: A rank's index is not there.
        ValueError: Slices overlap, or do not cover their tensor.
    """
    groups, hashes = _merge_indexes(folder, world_size)
    if tokenizer_dir_writer is not None:
        (folder / "tokenizer").mkdir()
        tokenizer_dir_writer(folder / "tokenizer")
    plain_config = json.loads(json.dumps(run_config, default=plain))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain_config, sort_keys=False), encoding="utf-8")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "model": asdict(model),
        "run_config": plain_config,
        "loop_state": loop_state,
        "groups": groups,
        "files": {
            name: {"size": (folder / name).stat().st_size, "sha256": hashes.get(name) or sha256(folder / name)}
            for name in names
        },
    }
    manifest["sha256"] = seal(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, default=plain) + "\n", encoding="utf-8")


def split(boxes: Mapping[str, Values]) -> list[list[str]]:
    """The names of boxes by file: in order, each of at most 2 GiB or one box."""
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


def _merge_indexes(folder: Path, world_size: int) -> tuple[dict[str, Any], dict[str, str]]:
    groups: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    for rank in range(world_size):
        path = _index(folder, rank, world_size)
        _require(path)
        index = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        hashes |= index["hashes"]
        for group, entries in index["groups"].items():
            merged = groups.setdefault(group, {})
            for name, entry in entries.items():
                known = merged.setdefault(name, entry)
                if known is not entry:
                    known["dtype"] = known["dtype"] or entry["dtype"]
                    known["slices"] += entry["slices"]
                    if entry["shape"] != known["shape"] or entry["dtype"] not in (None, known["dtype"]):
                        raise ValueError(f"rank {rank} has another shape or dtype of {group} {name} than ranks before")
    for group, entries in groups.items():
        for name, entry in entries.items():
            if fault := coverage_fault(tuple(entry["shape"]), entry["slices"]):
                raise ValueError(f"the slices of {group} {name} {tuple(entry['shape'])} {fault}")
    return groups, hashes


def _require(path: Path) -> None:
    """What another rank made is there."""
    if not path.exists():
        raise UserError(
            f"cannot write the checkpoint: {path}, which another process made, is not there; all processes need one "
            f"(shared) file system, give it as paths.outputs=DIRECTORY"
        )


def numbered(position: int, count: int) -> str:
    """A file's place among its like, as in Hugging Face's names."""
    return f"{position + 1:05}-of-{count:05}"


def _index(folder: Path, rank: int, world_size: int) -> Path:
    return folder / f"index-{numbered(rank, world_size)}.json"
