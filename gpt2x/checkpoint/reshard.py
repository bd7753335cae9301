"""Write a checkpoint again, whole or in the slices of a different layout, with one piece of a tensor in memory."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

from gpt2x.checkpoint.store import Checkpoint
from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.checkpoint.write import Content, Sliced, complete, read_indexes, save, write_slices
from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.layout import Coordinates, padded_for, validate_layout, validate_parallel, world_size
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes
from gpt2x.parallel.placement import Placement, holds, owns, placement, shard_rows
from gpt2x.runtime.files import new_directory


def merge(source: Checkpoint, target: Path) -> None:
    """Write a checkpoint like a run on one device.

    Raises:
        UserError: `target` exists or cannot be written, or `source` is damaged.
    """
    require_new(target)
    source.verify()
    tensors = {group: source.tensors(group) for group in source.groups()}
    save(
        target,
        tensors={group: {name: lazy.box(name) for name in lazy} for group, lazy in tensors.items()},
        **vars(_content(source)),
    )


def reshard(source: Checkpoint, target: Path, parallel: ParallelConfig) -> None:
    """Write a checkpoint like a run in the layout `parallel`, with files of each of its ranks.

    Raises:
        UserError: the layout does not divide the model, `target` exists or cannot be written, or `source` is damaged.
    """
    validate_parallel(parallel)
    model = padded_for(source.model, parallel)  # padding is not stored; pad like a run in this layout
    validate_layout(parallel, model)
    require_new(target)
    source.verify()
    size = world_size(parallel)
    with new_directory(target) as folder:
        for rank in range(size):
            coordinates = Coordinates(parallel, rank)
            tensors = {group: owned_slices(source.tensors(group), model, coordinates) for group in source.groups()}
            write_slices(folder, tensors, rank, size)
        complete(folder, read_indexes(folder, size), _content(source))


def owned_slices(tensors: LazyTensors, model: ModelConfig, coordinates: Coordinates) -> dict[str, Sliced]:
    """Return the slices that a rank writes of each tensor: of weights, or of optimizer states named STATE.WEIGHT."""
    shapes = tensor_shapes(model)
    owned = {}
    for name, spec in tensors.specs.items():
        weight = name if name in shapes else name.partition(".")[2]
        if shapes.get(weight) == spec.shape:
            part = owned_part(weight, spec.shape, model, coordinates, is_state=weight != name)
            boxes = () if part is None else part.boxes
            parts = [(box.start, tensors.box(name, box.start, box.shape)) for box in boxes]
        else:  # not a tensor that a layout divides
            zeros = (0,) * len(spec.shape)
            parts = [(zeros, tensors.box(name))] if coordinates.rank == 0 else []
        if parts:
            owned[name] = Sliced(spec.shape, [*parts])
    return owned


def owned_part(
    name: str, shape: tuple[int, ...], model: ModelConfig, coordinates: Coordinates, *, is_state: bool
) -> Placement | None:
    """Return the part of a weight or of its optimizer state that a rank writes, or None.

    Of the copies of a value on several ranks, exactly one is written.
    """
    if not holds(name, model, coordinates) or not owns(name, coordinates):
        return None
    part = placement(name, shape, model, coordinates)
    rows = shard_rows(part.shape, coordinates) if is_state else None
    if rows is None:
        return part if coordinates.data == 0 else None
    return part.rows(rows.start, rows.stop) if coordinates.data < coordinates.parallel.shards else None


def require_new(target: Path) -> None:
    """Check that `target` does not exist, since nothing is overwritten.

    Raises:
        UserError: `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} exists. Nothing was written; give a directory that does not exist.")


def _content(source: Checkpoint) -> Content:
    tokenizer_dir = source.tokenizer_dir
    writer = None
    if tokenizer_dir is not None:
        writer = partial(shutil.copytree, tokenizer_dir, dirs_exist_ok=True)
    return Content(source.model, source.run_config, source.loop_state, writer, source.special_ids)
