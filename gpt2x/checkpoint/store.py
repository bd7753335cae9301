"""Open checkpoint directories, verify them, and read their tensors whole or in boxes.

    step_N/
      weights.safetensors    logical tensors with Hugging Face's names and layout (docs/design/architecture.md)
      optimizer.safetensors  optimizer states, named STATE.TENSOR
      tokenizer/             tokenizer.json, ...
      config.yaml            the run's resolved configuration, for reading
      manifest.json          everything else, written last (docs/checkpoints.md)

The manifest lists slices of each logical tensor. Several ranks may have written one tensor into several files, and any
layout reads it back.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.checkpoint.files import sha256
from gpt2x.checkpoint.manifest import (
    MANIFEST,
    TOKENIZER,
    NotAManifestError,
    coverage_fault,
    model_config,
    read_manifest,
)
from gpt2x.checkpoint.tensors import LazyTensors, Shape, Spec, StoredTensor, open_safetensors
from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.runtime.files import sync
from gpt2x.runtime.json_text import decoded

STEP_NAME = re.compile(r"step_(\d+)")
DAMAGED = ".damaged"  # after the name of a checkpoint that was set aside


class Checkpoint:
    """A checkpoint whose manifest is intact and whose files exist in the right sizes.

    Attributes:
        path: the directory.
        model: the model's configuration.
        run_config: the configuration of the run that wrote it, as plain data.
        loop_state: the state of the training loop that was passed to `save`.
        tokenizer_dir: the directory of the tokenizer's files, or None.
        special_ids: the model's BOS, EOS and PAD as plain data (`gpt2x.convert.special_ids`); None in checkpoints
            that were written before they were stored.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.model = model_config(path, manifest["model"])
        self.run_config: dict[str, Any] = manifest["run_config"]
        self.loop_state: dict[str, Any] = decoded(manifest["loop_state"])
        has_tokenizer = any(name.startswith(f"{TOKENIZER}/") for name in manifest["files"])
        self.tokenizer_dir = path / TOKENIZER if has_tokenizer else None
        self.special_ids: dict[str, Any] | None = manifest.get("special_ids")
        self._opened: dict[str, dict[str, StoredTensor]] = {}

    def verify(self) -> None:
        """Hash every file (about 1 GB/s), and check that the slices of each tensor cover it exactly once.

        Raises:
            UserError: a file differs from the manifest, or slices overlap, leave gaps or are not in their file.
        """
        self.verify_files(self.manifest["files"])
        for group in self.groups():
            for name, entry in self._group(group).items():
                for piece in entry["slices"]:
                    self._stored(name, piece, entry["dtype"])
                if fault := coverage_fault(tuple(entry["shape"]), entry["slices"]):
                    raise UserError(
                        f"checkpoint {self.path}: the slices of {group} {name} {tuple(entry['shape'])} {fault}. "
                        "Use a different checkpoint."
                    )

    def verify_files(self, names: Iterable[str]) -> None:
        """Hash some of the files.

        Raises:
            UserError: one differs from the manifest, or cannot be read.
        """
        for name in names:
            try:
                actual = sha256(self.path / name)
            except OSError as error:
                raise UserError(
                    f"checkpoint {self.path}: {name} cannot be read ({error.strerror or error}). Copy the checkpoint "
                    "again, or use a different one."
                ) from error
            if actual != self.manifest["files"][name]["sha256"]:
                raise UserError(
                    f"checkpoint {self.path}: {name} was altered after it was written (its sha256 is not the "
                    "manifest's). Copy it again, or use a different checkpoint."
                )

    def verify_small_files(self) -> None:
        """Hash every file but those of tensors, which takes milliseconds.

        Raises:
            UserError: as `verify_files`.
        """
        self.verify_files(name for name in self.manifest["files"] if not name.endswith(".safetensors"))

    def groups(self) -> list[str]:
        """Return the groups of tensors: weights or adapter, and optimizer."""
        return list(self.manifest["groups"])

    def names(self, group: str) -> list[str]:
        """Return the names of a group's tensors.

        Raises:
            UserError: there is no such group.
        """
        return list(self._group(group))

    def shape(self, group: str, name: str) -> tuple[int, ...]:
        """Return the logical shape of a tensor."""
        return tuple(self._group(group)[name]["shape"])

    def tensor(self, group: str, name: str) -> np.ndarray:
        """Return a whole tensor: a read-only view of its file if it is one slice, else a copy of its slices."""
        shape = self.shape(group, name)
        return self.read(group, name, (0,) * len(shape), shape)

    def read(self, group: str, name: str, start: Shape, shape: Shape) -> np.ndarray:
        """Return a box of a tensor. Only the files and pages that hold it are read.

        Args:
            group: weights, adapter or optimizer.
            name: the tensor.
            start: the index of the box's first value.
            shape: the shape of the box.

        Returns:
            A read-only view of the memory-mapped file if the box lies there without gaps, else a copy.
        """
        entry = self._group(group)[name]
        values: np.ndarray | None = None
        for piece in entry["slices"]:
            first = tuple(map(max, start, piece["start"]))
            stop = tuple(map(min, _ends(start, shape), _ends(piece["start"], piece["shape"])))
            if any(begin >= end for begin, end in zip(first, stop, strict=True)):
                continue
            part_shape = tuple(end - begin for begin, end in zip(first, stop, strict=True))
            part_start = tuple(begin - at for begin, at in zip(first, piece["start"], strict=True))
            part = self._stored(name, piece, entry["dtype"]).read(part_start, part_shape)
            if part_shape == shape:
                return part
            if values is None:
                values = np.empty(shape, entry["dtype"])
            values[tuple(slice(f - at, e - at) for f, e, at in zip(first, stop, start, strict=True))] = part
        return np.empty(shape, entry["dtype"]) if values is None else values

    def tensors(self, group: str) -> LazyTensors:
        """Return all tensors of a group. Each is read on access, whole or as a box."""
        specs = {
            name: Spec(tuple(entry["shape"]), np.dtype(entry["dtype"])) for name, entry in self._group(group).items()
        }
        return LazyTensors(specs, partial(self.read, group))

    def _group(self, group: str) -> dict[str, Any]:
        groups = self.manifest["groups"]
        if group not in groups:
            raise UserError(
                f"checkpoint {self.path} holds no {group}, only {', '.join(groups) or 'nothing'}. "
                "Use a different checkpoint."
            )
        return groups[group]

    def _stored(self, name: str, piece: dict[str, Any], dtype: str) -> StoredTensor:
        file, key = piece["file"], piece.get("key", name)
        if file not in self._opened:
            self._opened[file] = open_safetensors(self.path / file)
        stored = self._opened[file].get(key)
        if stored is None or list(stored.shape) != piece["shape"] or stored.dtype != np.dtype(dtype):
            raise UserError(
                f"checkpoint {self.path}: {file} does not hold {key} with the shape {tuple(piece['shape'])} of "
                f"{dtype}, which the manifest names. Copy the checkpoint again, or use a different one."
            )
        return stored


def _ends(start: Sequence[int], shape: Sequence[int]) -> Shape:
    return tuple(at + n for at, n in zip(start, shape, strict=True))


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Open a checkpoint and check what is cheap: the manifest and its hash, and the sizes of all files.

    Raises:
        UserError: the directory is not a checkpoint, is incomplete or damaged, or has a different format version.
    """
    path = Path(path).expanduser()
    manifest_path = path / MANIFEST
    if not path.is_dir():
        fault = "is not a directory" if path.exists() else "does not exist"
        raise UserError(f"checkpoint {path} {fault}. Give a directory like RUN/checkpoints/step_100.")
    if not manifest_path.is_file():
        raise UserError(
            f"checkpoint {path} has no {MANIFEST}: it is not a checkpoint, or was never completed. {_hint(path)}"
        )
    try:
        manifest = read_manifest(path)
    except NotAManifestError as error:
        raise UserError(f"{error} {_hint(path)}") from None
    return Checkpoint(path, manifest)


def list_checkpoints(run_dir: Path | str) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first; unfinished and damaged ones are left out."""
    complete = []
    for path in step_directories(run_dir):
        try:
            open_checkpoint(path)
        except UserError:
            continue
        complete.append(path)
    return complete


def prune(run_dir: Path | str, keep_last: int, best: int | None = None, newest: int | None = None) -> list[Path]:
    """Delete complete checkpoints except the last `keep_last` and the one of step `best`; return the deleted ones.

    Remains of interrupted writes are deleted as well, and damaged checkpoints that were set aside and have been written
    again; so only the owner of the run directory may call this.

    Args:
        run_dir: of the run.
        keep_last: how many stay.
        best: a step whose checkpoint stays.
        newest: the step that was written last. Later ones, which a run that continues from an earlier checkpoint has
            not reached again, are not counted and stay; nothing is deleted unless the newest is complete.

    Raises:
        UserError: `keep_last` is below 1.
        OSError: the directory cannot be changed.
    """
    if keep_last < 1:
        raise UserError(
            f"trainer.keep_last={keep_last} is below 1, but a run keeps its last checkpoint. Give 1 or more."
        )
    recover(run_dir)
    complete = list_checkpoints(run_dir)
    if newest is not None:
        names = [path.name for path in complete]
        complete = complete[: names.index(f"step_{newest}") + 1] if f"step_{newest}" in names else []
    for path in complete:
        for damaged in path.parent.glob(f"{path.name}{DAMAGED}*"):
            remove(damaged)
    removed = []
    for path in complete[:-keep_last]:
        if path.name == f"step_{best}":
            continue
        hidden = path.with_name(f".{path.name}.old")  # renamed first, so that no reader opens half a checkpoint
        shutil.rmtree(hidden, ignore_errors=True)
        try:
            path.rename(hidden)
        except OSError as error:  # the next call tries again
            console.warn(f"{path} cannot be removed ({error.strerror or error})")
        else:
            removed.append(path)
    for remains in (Path(run_dir) / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains, ignore_errors=True)
    return removed


def recover(run_dir: Path | str) -> None:
    """Give a checkpoint its name back that a crash left moved aside, before its successor was in place.

    Only the process that writes may call this.

    Raises:
        OSError: the directory cannot be changed.
    """
    for aside in (Path(run_dir) / "checkpoints").glob(".step_*.old-*"):
        path = aside.with_name(aside.name[1:].partition(".")[0])
        if not path.exists() and (aside / MANIFEST).is_file():
            aside.rename(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint to `step_N.damaged`, which no reader takes for one; return the new path.

    If that exists already, a number is added. `prune` deletes it when the step has been written again.
    """
    number, target = 1, path.with_name(path.name + DAMAGED)
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{DAMAGED}.{number}")
    path.rename(target)
    sync(path.parent)
    return target


def step_directories(run_dir: Path | str) -> list[Path]:
    """Return what has the name of a checkpoint of a run, oldest first, damaged ones included."""
    steps = {}
    for path in (Path(run_dir) / "checkpoints").glob("step_*"):
        if match := STEP_NAME.fullmatch(path.name):
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps)]


def remove(path: Path) -> None:
    """Delete a directory or a file as far as the system allows."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _hint(path: Path) -> str:
    """Return the fix for a directory that is not a checkpoint."""
    for run_dir in (path, path.parent):
        if complete := list_checkpoints(run_dir):
            return f"The newest complete one is {complete[-1]}."
    if (path / "config.json").is_file():
        return f"Convert a Hugging Face directory first: gpt2x convert --to gpt2x --output DIR {path}"
    return "Give a directory like RUN/checkpoints/step_100."
