"""The manifest of a checkpoint: read within limits, unaltered, and of the form that `write.complete` gives it.

A manifest states its own SHA-256, so damage is noticed. But anybody can compute that hash, so nothing else in it is
taken for true either: each entry has its type, each file lies in the checkpoint and has its size, and no tensor is
larger than the files that hold it.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from hashlib import sha256 as sha256_of
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gpt2x.checkpoint.tensors import Shape
from gpt2x.config import ModelConfig
from gpt2x.config.keys import check_plain
from gpt2x.errors import UserError
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import decoded_text, parse_json

FORMAT = "gpt2x-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"  # the folder of the tokenizer's files
AGAIN = "Copy the checkpoint again, or use a different one."
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
SHA256 = re.compile("[0-9a-f]{64}")
MAX_DIMS = 4  # of a tensor; the corners of a slice are 2 ** dims


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the checkpoint in the directory `path`, without its hash.

    The model's configuration, all entries of groups and files, and the sizes of files have been checked.

    Raises:
        UserError: it is damaged or of a different version, or something in it is impossible.
    """
    file = path / MANIFEST
    content = limits.read_bytes(file, limits.JSON_BYTES, AGAIN)
    manifest = parse_json(
        decoded_text(content, file, AGAIN), f"checkpoint {path}: {MANIFEST} cannot be read, it", AGAIN
    )
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise NotAManifestError(f"checkpoint {path}: {MANIFEST} is not a gpt2x manifest (format is not {FORMAT!r}).")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"checkpoint {path} has format version {_short(manifest.get('version'))}, but this gpt2x reads {VERSION}. "
            "Use the gpt2x that wrote it."
        )
    claimed = manifest.pop("sha256", None)
    if claimed != seal(manifest):
        raise UserError(
            f"checkpoint {path}: {MANIFEST} was altered after it was written (its sha256 is wrong). "
            "Copy it again, or use a different checkpoint."
        )
    try:
        _check(manifest)
    except _FaultError as fault:
        raise UserError(f"checkpoint {path}: {MANIFEST} {fault}. Do not use it.") from None
    for name, entry in manifest["files"].items():
        _require_size(path, name, entry["size"])
    _require_listed(path, manifest["files"])
    return manifest


class NotAManifestError(UserError):
    """The file is something else."""


class _FaultError(Exception):
    """What is impossible in a manifest."""


def model_config(path: Path, values: dict[str, Any]) -> ModelConfig:
    """Return the model of a manifest.

    Raises:
        UserError: unknown, missing or impossible settings.
    """
    names = {entry.name for entry in fields(ModelConfig)}
    if unknown := sorted(map(_short, values.keys() - names)):
        raise UserError(
            f"checkpoint {path} has unknown model settings: {', '.join(unknown[:5])}. Use the gpt2x that wrote it."
        )
    model = check_plain(values, ModelConfig, "model.", f"checkpoint {path}")
    if model.hidden_size % model.num_heads:
        raise UserError(
            f"checkpoint {path} has model.hidden_size={model.hidden_size}, which is not divisible by model.num_heads="
            f"{model.num_heads}. Use a different checkpoint."
        )
    return model


def seal(manifest: dict[str, Any]) -> str:
    """Return the hash of a manifest's content, which does not depend on the order of its keys or on spaces."""
    text = json.dumps(json.loads(json.dumps(manifest, default=plain)), sort_keys=True, separators=(",", ":"))
    return sha256_of(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(value: Any) -> Any:
    """Return numpy's scalars and paths as plain data, for `json.dumps`."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint holds plain data, not {type(value).__name__}: {value!r}")


def coverage_fault(shape: Shape, slices: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what is wrong if slices do not cover a tensor of `shape` exactly once, else None.

    A box is determined by its corners, each with the sign (-1) ** (number of ends among its coordinates). The boxes
    cover the whole once if and only if their signed corners add up to those of the whole: these are the derivative by
    all dims of how often a point is covered. The time is in proportion to the number of slices.
    """
    corners: Counter[tuple[int, ...]] = Counter()
    covered = 0
    for piece in slices:
        start, size = piece["start"], piece["shape"]
        if len(start) != len(shape) or any(
            at < 0 or at + n > whole for at, n, whole in zip(start, size, shape, strict=True)
        ):
            return "reach beyond it"
        covered += math.prod(size)
        _add_corners(corners, start, size, 1)
    expected = math.prod(shape)
    _add_corners(corners, (0,) * len(shape), shape, -1)
    if not any(corners.values()):
        return None
    return f"hold {covered} of {expected} values" if covered < expected else "overlap"


def _add_corners(corners: Counter[tuple[int, ...]], start: Sequence[int], size: Sequence[int], sign: int) -> None:
    if 0 in size:
        return
    for ends in product((0, 1), repeat=len(size)):
        corner = tuple(at + n * end for at, n, end in zip(start, size, ends, strict=True))
        corners[corner] += sign * (-1) ** sum(ends)


def _check(manifest: dict[str, Any]) -> None:
    """Check the types and numbers of all entries.

    Raises:
        _FaultError: the first one that is impossible.
    """
    for key in ("model", "run_config", "loop_state", "groups", "files"):
        _require(isinstance(manifest.get(key), dict), f"has no object {key}")
    ids = manifest.get("special_ids")
    _require(ids is None or _is_special_ids(ids), "has special_ids that are no ids of tokens")
    for name, entry in manifest["files"].items():
        has_form = isinstance(entry, dict) and _is_count(entry.get("size")) and isinstance(entry.get("sha256"), str)
        _require(
            has_form and SHA256.fullmatch(entry["sha256"]) is not None, f"has no size and sha256 of {_short(name)}"
        )
        parts = PurePosixPath(name).parts
        is_inside = bool(parts) and not PurePosixPath(name).is_absolute() and ".." not in parts and "\0" not in name
        _require(is_inside, f"names the file {_short(name)} outside of the checkpoint")
    stored_bytes = sum(entry["size"] for entry in manifest["files"].values())
    for group, entries in manifest["groups"].items():
        _require(isinstance(entries, dict), f"has no tensors in the group {_short(group)}")
        for name, entry in entries.items():
            if fault := _fault_of_tensor(entry, manifest["files"], stored_bytes):
                raise _FaultError(f"has a tensor {_short(name)} of {_short(group)} {fault}")


def _fault_of_tensor(entry: Any, files: Mapping[str, Any], stored_bytes: int) -> str | None:
    if not isinstance(entry, dict) or not _is_shape(entry.get("shape")):
        return "without a shape"
    if entry.get("dtype") not in DTYPES:
        return f"of the dtype {_short(entry.get('dtype'))}, which is none of {', '.join(DTYPES)}"
    if math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize > stored_bytes:
        return f"of the shape {tuple(entry['shape'])}, which is larger than all files"
    slices = entry.get("slices")
    if not isinstance(slices, list):
        return "without a list of slices"
    for piece in slices:
        if not (isinstance(piece, dict) and _is_shape(piece.get("shape")) and _is_shape(piece.get("start"))
                and isinstance(piece.get("key", ""), str)):  # fmt: skip
            return "with a slice that has no start and shape"
        if not len(piece["shape"]) == len(piece["start"]) == len(entry["shape"]):
            return "with a slice of other dims"
        if not isinstance(piece.get("file"), str) or piece["file"] not in files:
            return f"in the file {_short(piece.get('file'))}, which is not among its files and has no hash"
    return None


def _is_special_ids(ids: Any) -> bool:
    if not isinstance(ids, dict) or not all(isinstance(ids.get(key), dict) for key in ("config", "generation")):
        return False
    stated = [
        value for part in (ids["config"], ids["generation"]) for key, value in part.items() if key.endswith("_id")
    ]
    listed = [token for value in stated for token in (value if isinstance(value, list) else [value])]
    return all(token is None or (type(token) is int and abs(token) < limits.DIM) for token in listed)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MAX_DIMS
        and all(type(n) is int and 0 <= n < limits.DIM for n in value)
    )


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise _FaultError(fault)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _require_size(path: Path, name: str, size: int) -> None:
    """Check that a file is in the checkpoint, is a file, and has its size.

    Raises:
        UserError: it is not, or has not.
    """
    try:
        status = (path / name).stat()
        is_inside = (path / name).resolve().is_relative_to(path.resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {path}: {name} is missing. {AGAIN}") from error
    if not is_inside or not stat.S_ISREG(status.st_mode):
        fault = "is no file" if is_inside else "is a link that leads outside of the checkpoint"
        raise UserError(f"checkpoint {path}: {name} {fault}. Copy the file itself there.")
    if status.st_size != size:
        fault = "truncated" if status.st_size < size else "longer than it was written"
        raise UserError(f"checkpoint {path}: {name} is {fault} ({status.st_size} bytes instead of {size}). {AGAIN}")


def _require_listed(path: Path, files: Mapping[str, Any]) -> None:
    """Check that the tokenizer's folder has no file without a hash: it would change what the tokenizer does.

    Raises:
        UserError: names the file.
    """
    folder = path / TOKENIZER
    if folder.is_symlink() or not folder.is_dir():
        return
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(path).as_posix()
        if name not in files and not file.is_dir():
            raise UserError(f"checkpoint {path}: {name} was added after it was written. Move it away.")
