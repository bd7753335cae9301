"""The checkpoint directory: written whole, verified before it is used.

    step_N/
      weights.safetensors    logical tensors, Hugging Face's names and layout (docs/design/architecture.md)
      optimizer.safetensors  the optimizer's states, named by the trainer
      tokenizer/             tokenizer.json, ...
      config.yaml            the run's resolved configuration, for people
      manifest.json          everything else, written last: see docs/checkpoints.md

A tensor is listed as slices of its logical shape, so that several ranks can write one tensor into several files and
any layout can read it back; today one slice holds a whole tensor.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, fields
from hashlib import sha256 as sha256_of
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from gpt2x.checkpoint.files import require_writable, sha256
from gpt2x.checkpoint.tensors import LazyTensors, StoredTensor, open_safetensors, write_safetensors
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.runtime.files import new_directory

__all__ = ["Checkpoint", "list_checkpoints", "open_checkpoint", "prune", "require_writable", "save"]

FORMAT = "gpt2x-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"
STEP_NAME = re.compile(r"step_(\d+)")


def save(
    directory: Path,
    *,
    tensors: dict[str, dict[str, np.ndarray]],
    model: ModelConfig,
    run_config: dict[str, Any],
    loop_state: dict[str, Any],
    tokenizer_dir_writer: Callable[[Path], None] | None,
) -> None:
    """Writes a checkpoint so that it is there completely or not at all.

    Args:
        directory: Its final place, e.g. `RUN/checkpoints/step_100`; one that exists is replaced at the end.
        tensors: Group to name to values; a group becomes the file `GROUP.safetensors`. numpy dtypes only.
        model: With `vocab_size` known.
        run_config: The resolved configuration, as plain data.
        loop_state: Plain data; floats come back bit for bit (Python writes the shortest text that does).
        tokenizer_dir_writer: Writes the tokenizer's files into the directory it is given, which exists.

    Raises:
        UserError: The system refused to write; what was there before is unchanged.
    """
    with new_directory(directory) as temporary:
        groups: dict[str, Any] = {}
        for group, values in tensors.items():
            file = f"{group}.safetensors"
            write_safetensors(temporary / file, values)
            groups[group] = {
                name: {
                    "shape": list(np.shape(value)),
                    "dtype": str(np.asarray(value).dtype),
                    "slices": [{"file": file, "start": [0] * np.ndim(value), "shape": list(np.shape(value))}],
                }
                for name, value in values.items()
            }
        if tokenizer_dir_writer is not None:
            (temporary / "tokenizer").mkdir()
            tokenizer_dir_writer(temporary / "tokenizer")
        plain_config = json.loads(json.dumps(run_config, default=_plain))
        (temporary / "config.yaml").write_text(yaml.safe_dump(plain_config, sort_keys=False), encoding="utf-8")
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "model": asdict(model),
            "run_config": plain_config,
            "loop_state": loop_state,
            "groups": groups,
            "files": {
                path.relative_to(temporary).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)}
                for path in written
            },
        }
        manifest["sha256"] = _seal(manifest)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, default=_plain) + "\n", encoding="utf-8")


class Checkpoint:
    """A checkpoint whose manifest is sound and whose files are there with the right sizes.

    Attributes:
        path: The directory.
        model: The model's configuration.
        run_config: The configuration of the run that wrote it; data, never instantiated.
        loop_state: What the trainer handed to `save`.
        tokenizer_dir: The tokenizer's files, or None.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]):
        self.path = path
        self.manifest = manifest
        self.model = _model_config(path, manifest["model"])
        self.run_config: dict[str, Any] = manifest["run_config"]
        self.loop_state: dict[str, Any] = manifest["loop_state"]
        self.tokenizer_dir = path / "tokenizer" if (path / "tokenizer").is_dir() else None
        self._opened: dict[str, dict[str, StoredTensor]] = {}

    def verify(self) -> None:
        """Hashes every file (about 1 GB/s).

        Raises:
            UserError: One differs from the manifest.
        """
        for name, expected in self.manifest["files"].items():
            if sha256(self.path / name) != expected["sha256"]:
                raise UserError(
                    f"checkpoint {self.path}: {name} was altered after it was written (its sha256 is not the "
                    f"manifest's): copy it again, or use another checkpoint"
                )

    def groups(self) -> list[str]:
        """The groups of tensors: weights, optimizer."""
        return list(self.manifest["groups"])

    def names(self, group: str) -> list[str]:
        """The names of a group's tensors.

        Raises:
            UserError: There is no such group.
        """
        return list(self._group(group))

    def shape(self, group: str, name: str) -> tuple[int, ...]:
        """The logical shape of a tensor."""
        return tuple(self._group(group)[name]["shape"])

    def tensor(self, group: str, name: str) -> np.ndarray:
        """A whole tensor: a read-only view of its file where one slice holds it, else a copy put together."""
        entry = self._group(group)[name]
        if len(entry["slices"]) == 1:
            return self._stored(entry["slices"][0]["file"], name).read()
        whole = np.empty(entry["shape"], entry["dtype"])
        for piece in entry["slices"]:
            place = tuple(slice(at, at + n) for at, n in zip(piece["start"], piece["shape"], strict=True))
            whole[place] = self._stored(piece["file"], name).read()
        return whole

    def tensors(self, group: str) -> LazyTensors:
        """All tensors of a group, each read when it is asked for."""
        shapes = {name: self.shape(group, name) for name in self.names(group)}
        return LazyTensors(shapes, lambda name: self.tensor(group, name))

    def _group(self, group: str) -> dict[str, Any]:
        groups = self.manifest["groups"]
        if group not in groups:
            raise UserError(f"checkpoint {self.path} holds no {group} (it holds: {', '.join(groups) or 'nothing'})")
        return groups[group]

    def _stored(self, file: str, name: str) -> StoredTensor:
        if file not in self._opened:
            self._opened[file] = open_safetensors(self.path / file)
        return self._opened[file][name]


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a checkpoint and checks what is cheap: the manifest with its own hash, files and their sizes.

    Raises:
        UserError: Naming path, fault and fix.
    """
    path = Path(path).expanduser()
    manifest_path = path / MANIFEST
    if not path.is_dir():
        fault = "is not a directory" if path.exists() else "does not exist"
        raise UserError(f"checkpoint {path} {fault}: give a directory like RUN/checkpoints/step_100")
    if not manifest_path.is_file():
        raise UserError(
            f"checkpoint {path} has no {MANIFEST}: it is not a checkpoint, or was never completed; {_hint(path)}"
        )
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(
            f"checkpoint {path}: {MANIFEST} cannot be read ({error}): copy it again, or use another checkpoint"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(
            f"checkpoint {path}: {MANIFEST} is not a gpt2x manifest (format is not {FORMAT!r}); {_hint(path)}"
        )
    if manifest.get("version") != VERSION:
        raise UserError(
            f"checkpoint {path} has format version {manifest.get('version')}, this gpt2x reads {VERSION}: "
            f"use the gpt2x that wrote it"
        )
    seal = manifest.pop("sha256", None)
    if seal != _seal(manifest):
        raise UserError(
            f"checkpoint {path}: {MANIFEST} was altered after it was written (its sha256 does not fit): "
            f"copy it again, or use another checkpoint"
        )
    for name, expected in manifest["files"].items():
        _require_size(path, name, expected["size"])
    return Checkpoint(path, manifest)


def list_checkpoints(run_dir: Path | str) -> list[Path]:
    """The complete checkpoints of a run, oldest first; unfinished and damaged ones are left out."""
    found = []
    for path in _step_directories(Path(run_dir)):
        try:
            open_checkpoint(path)
        except UserError:
            continue
        found.append(path)
    return found


def prune(run_dir: Path | str, keep_last: int, best: int | None = None) -> list[Path]:
    """Deletes all complete checkpoints but the last `keep_last` and the one of step `best`; returns what went.

    Remains of writes that were cut short go as well, so only the process that writes may call it.

    Raises:
        UserError: `keep_last` is under 1.
    """
    if keep_last < 1:
        raise UserError(f"trainer.keep_last={keep_last}: a run keeps at least its last checkpoint, give 1 or more")
    removed = [path for path in list_checkpoints(run_dir)[:-keep_last] if path.name != f"step_{best}"]
    for path in removed:
        going = path.with_name(f".{path.name}.old")  # renamed first: a reader never meets half a checkpoint
        shutil.rmtree(going, ignore_errors=True)
        path.rename(going)
    for remains in (Path(run_dir) / "checkpoints").glob(".step_*"):
        shutil.rmtree(remains, ignore_errors=True)
    return removed


def _step_directories(run_dir: Path) -> list[Path]:
    steps = {}
    for path in (run_dir / "checkpoints").glob("step_*"):
        if match := STEP_NAME.fullmatch(path.name):
            steps[int(match[1])] = path
    return [steps[step] for step in sorted(steps)]


def _hint(path: Path) -> str:
    """The fix for a directory that is no checkpoint: where the next one is."""
    for run_dir in (path, path.parent):
        if complete := list_checkpoints(run_dir):
            return f"the newest complete one is {complete[-1]}"
    return "give a directory like RUN/checkpoints/step_100"


def _require_size(path: Path, name: str, size: int) -> None:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"checkpoint {path}: the manifest names the file {name!r} outside of it: do not use it")
    try:
        found = (path / name).stat().st_size
    except OSError as error:
        raise UserError(
            f"checkpoint {path}: {name} is missing: copy the checkpoint again, or use another one"
        ) from error
    if found != size:
        fault = "truncated" if found < size else "longer than it was written"
        raise UserError(
            f"checkpoint {path}: {name} is {fault} ({found} bytes instead of {size}): "
            f"copy the checkpoint again, or use another one"
        )


def _model_config(path: Path, values: dict[str, Any]) -> ModelConfig:
    unknown = sorted(values.keys() - {entry.name for entry in fields(ModelConfig)})
    if unknown:
        raise UserError(f"checkpoint {path}: unknown model settings {', '.join(unknown)}: use the gpt2x that wrote it")
    return ModelConfig(**values)


def _seal(manifest: dict[str, Any]) -> str:
    """The hash of a manifest's content, whatever the order of its keys and its spaces."""
    text = json.dumps(json.loads(json.dumps(manifest, default=_plain)), sort_keys=True, separators=(",", ":"))
    return sha256_of(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """For json: numpy's scalars and paths as plain data."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a checkpoint holds plain data, not {type(value).__name__}: {value!r}")
