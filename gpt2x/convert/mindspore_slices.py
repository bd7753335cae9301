"""Checkpoints that MindSpore's `semi_auto_parallel` saved in slices: one file per rank, and strategy files.

A strategy file says for each parameter how the devices of a pipeline stage stand in a matrix, and which dim of the
matrix divides which dim of the tensor (node_strategy.proto; mindspore/parallel/_tensor.py). With the parallel
optimizer, the first dim is divided once more, among ranks that would have copies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x.checkpoint.tensors import Shape
from gpt2x.convert.mindspore_ckpt import Readable
from gpt2x.convert.protobuf import Field, fields, numbers, signed, text
from gpt2x.errors import UserError
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import decoded_text, parse_json

AGAIN = "Copy it again."
UNEVEN = "it divides a parameter unevenly, which GPT-2 never needs"


@dataclass(frozen=True)
class Layout:
    """How the ranks of one stage divide a parameter.

    Attributes:
        devices: sizes of the device matrix; the ranks of the stage stand in it in row-major order.
        tensor_map: for each dim of the tensor, the dims of the matrix that divide it, counted from the last; -1: none.
        optimizer_shards: ranks that divide the first dim once more; 0: none, -1: all that would have copies.
    """

    devices: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    optimizer_shards: int = 0

    @property
    def num_ranks(self) -> int:
        """Number of ranks of the stage."""
        return math.prod(self.devices)

    def splits(self) -> list[int]:
        """Return into how many slices each dim is divided."""
        splits = [math.prod(self.devices[-1 - dim] for dim in dims if dim >= 0) for dims in self.tensor_map]
        if splits:
            splits[0] *= self._shards()
        return splits

    @cache  # noqa: B019 - equal layouts, which most parameters of a model have, share the results
    def slice_of(self, rank: int) -> tuple[int, ...]:
        """Return the number of the slice in each dim that a rank of the stage has."""
        at = np.unravel_index(rank, self.devices)
        index = []
        for dims in self.tensor_map:
            number = 0
            for dim in dims:
                if dim >= 0:
                    number = number * self.devices[-1 - dim] + int(at[-1 - dim])
            index.append(number)
        if index and self._shards() > 1:
            copies = 0
            for dim in self.copies():
                copies = copies * self.devices[dim] + int(at[dim])
            index[0] = index[0] * self._shards() + copies % self._shards()
        return tuple(index)

    def copies(self) -> list[int]:
        """Return the dims of the matrix that divide no dim of the tensor, so that their ranks would have copies."""
        dividing = {len(self.devices) - 1 - dim for dims in self.tensor_map for dim in dims if dim >= 0}
        return [dim for dim in range(len(self.devices)) if dim not in dividing]

    def _shards(self) -> int:
        if self.optimizer_shards >= 0:
            return max(1, self.optimizer_shards)
        return math.prod(self.devices[dim] for dim in self.copies())


class SlicedTensor:
    """A tensor whose slices are tensors of several files.

    Args:
        shape: of the whole.
        parts: (start, slice); they cover the whole.
    """

    def __init__(self, shape: Shape, parts: Sequence[tuple[Shape, Readable]]):
        self.shape, self.parts = shape, parts
        self.dtype = parts[0][1].dtype

    def read(self, start: Shape | None = None, shape: Shape | None = None) -> np.ndarray:
        """Return a box, of which only the slices that it meets are read."""
        start = start or (0,) * len(self.shape)
        shape = tuple(n - at for n, at in zip(self.shape, start, strict=True)) if shape is None else shape
        values = np.empty(shape, self.dtype)
        for at, part in self.parts:
            low = tuple(map(max, start, at))
            high = tuple(min(s + n, a + m) for s, n, a, m in zip(start, shape, at, part.shape, strict=True))
            if all(a < b for a, b in zip(low, high, strict=True)):
                size = tuple(b - a for a, b in zip(low, high, strict=True))
                inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
                values[inside] = part.read(tuple(a - s for a, s in zip(low, at, strict=True)), size)
        return values


def join_slices(
    ranks: Mapping[int, Mapping[str, Readable]], stages: Mapping[int, Mapping[str, Layout]], origin: str
) -> dict[str, Readable]:
    """Return the whole parameters of sliced ones.

    A parameter that no strategy file names is whole on each rank that has it, as `transform_checkpoints` takes it.

    Args:
        ranks: rank -> its parameters.
        stages: pipeline stage -> parameter -> layout.
        origin: where they come from, for messages.

    Raises:
        UserError: a rank or the strategy of a stage is missing, or shapes do not fit the strategy.
    """
    _require_all_stages(ranks, stages, origin)
    joined: dict[str, Readable] = {}
    for stage, layouts in sorted(stages.items()):
        for name, layout in layouts.items():
            first = stage * layout.num_ranks
            present = {rank: ranks[first + rank][name] for rank in range(layout.num_ranks)
                       if name in ranks.get(first + rank, {})}  # fmt: skip
            if present and name not in joined:
                joined[name] = _join(name, layout, present, first, origin)
    for parameters in ranks.values():
        joined |= {name: tensor for name, tensor in parameters.items() if name not in joined}
    return joined


def _require_all_stages(
    ranks: Mapping[int, Mapping[str, Readable]], stages: Mapping[int, Mapping[str, Layout]], origin: str
) -> None:
    """Check that each rank belongs to a stage whose strategy is there.

    Raises:
        UserError: the strategy of a stage is missing.
    """
    num_ranks = max(layout.num_ranks for layouts in stages.values() for layout in layouts.values())
    for rank in ranks:
        if rank // num_ranks not in stages:
            raise UserError(
                f"{origin}: rank_{rank} belongs to pipeline stage {rank // num_ranks} ({num_ranks} ranks per stage), "
                f"but there are strategy files only of stage {', '.join(map(str, sorted(stages)))}. Copy the strategy "
                "files of all ranks."
            )


def _join(name: str, layout: Layout, present: dict[int, Readable], first: int, origin: str) -> Readable:
    """Return a whole parameter of the slices that are there; `present` is by rank within the stage."""
    shape = next(iter(present.values())).shape
    parts: dict[tuple[int, ...], Readable] = {}
    where = f"{origin}: {name} of rank_{first + next(iter(present))}"
    if len(shape) != len(layout.tensor_map):
        raise UserError(f"{where} has the shape {shape}, but its strategy divides {len(layout.tensor_map)} dims. "
                        "Give the strategy files of the run that wrote these checkpoints.")  # fmt: skip
    for rank, tensor in present.items():
        if (tensor.shape, tensor.dtype) != (shape, next(iter(present.values())).dtype):
            raise UserError(
                f"{where} has the shape {shape}, but rank_{first + rank} has {tensor.shape}, so its slices are not of "
                "one checkpoint. Copy the files of one step of all ranks."
            )
        parts.setdefault(layout.slice_of(rank), tensor)
    if missing := [first + rank for rank in range(layout.num_ranks) if layout.slice_of(rank) not in parts]:
        raise UserError(
            f"{origin}: {name} is divided among ranks, and its slices of {_listed(missing)} are missing. "
            "Copy the checkpoints of all ranks."
        )
    if len(parts) == 1:
        return next(iter(parts.values()))
    whole = tuple(n * split for n, split in zip(shape, layout.splits(), strict=True))
    starts = [(tuple(i * n for i, n in zip(index, shape, strict=True)), part) for index, part in parts.items()]
    return SlicedTensor(whole, starts)


def _listed(ranks: list[int]) -> str:
    return ", ".join(f"rank_{rank}" for rank in ranks[:5]) + (f" and {len(ranks) - 5} more" if len(ranks) > 5 else "")


# ---- strategy files


def read_strategies(files: Sequence[Path]) -> dict[int, dict[str, Layout]]:
    """Return the layouts of all stages; of several files of a stage, the first is read.

    Args:
        files: `.ckpt` or `.json`; also what `merge_pipeline_strategys` wrote, where names start with the stage.

    Raises:
        UserError: a file cannot be read, or divides a parameter unevenly.
    """
    stages: dict[int, dict[str, Layout]] = {}
    for file in files:
        for stage, layouts in _read_strategy(file).items():
            stages.setdefault(stage, layouts)
    return stages


def _read_strategy(file: Path) -> dict[int, dict[str, Layout]]:
    try:
        content = limits.read_bytes(file, limits.STRATEGY_BYTES, AGAIN)
        if file.suffix == ".json":
            stage, items = _from_json(parse_json(decoded_text(content, file, AGAIN), str(file), AGAIN))
        else:
            stage, items = _from_protobuf(content)
        if not items:
            raise ValueError("it names no parameter")
        if sum(layout.num_ranks for layout in items.values()) > limits.STRATEGY_SLICES:
            raise ValueError(f"its ranks hold more than {limits.STRATEGY_SLICES:,} slices")
        by_stage: dict[int, dict[str, Layout]] = {}
        for name, layout in items.items():
            number, dash, rest = name.partition("-")
            is_merged = bool(dash) and number.isdigit()
            by_stage.setdefault(int(number) if is_merged else stage, {})[rest if is_merged else name] = layout
        return by_stage
    except UserError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UserError(f"{file} is not a strategy file of MindSpore ({str(error)[:200]}). {AGAIN}") from error


def _from_protobuf(content: bytes) -> tuple[int, dict[str, Layout]]:
    """Return the stage and the layouts in a ParallelStrategyMap."""
    stage, items = 0, {}
    for item in fields(content, most=limits.TENSORS):
        if item.number == 2 and item.has_bytes:
            for part in fields(content, item.start, item.end):
                if part.number == 2 and part.has_bytes:
                    stages = [f.value for f in fields(content, part.start, part.end) if f.number == 1]
                    stage = stages[0] if stages else stage
        elif item.number == 3 and item.has_bytes:
            parts = {part.number: part for part in fields(content, item.start, item.end)}
            items[text(content, parts[1])] = _layout_of(content, parts[2])
    return stage, items


def _layout_of(content: bytes, message: Field) -> Layout:
    """Return the layout in a ParallelLayouts message."""
    rows: dict[int, list[list[int]]] = {}
    values: dict[int, int] = {}
    for part in fields(content, message.start, message.end):
        if part.has_bytes:
            row = [signed(n) for f in fields(content, part.start, part.end) for n in numbers(content, f)]
            rows.setdefault(part.number, []).append(row)
        else:
            values[part.number] = signed(part.value)
    maps = [row for row in rows.get(2, [[]]) if row] or [[]]
    # several maps: one per dim of the tensor, each with all dims of the matrix that divide it
    tensor_map = [[dim] for dim in maps[0]] if len(rows.get(2, [])) <= 1 else maps
    if values.get(5) or rows.get(3, [[]])[0]:
        raise ValueError(UNEVEN)
    return _checked(rows[1][0], tensor_map, values.get(6, 0), values.get(7, 0))


def _from_json(content: Any) -> tuple[int, dict[str, Layout]]:
    """Return the stage and the layouts in the JSON form of a strategy file."""
    strategies = content.get("parallel_strategy_item") or {}
    stage = next((item.get("stage", 0) for item in strategies.values()), 0)
    items = {}
    for name, item in content["parallel_layout_item"].items():
        tensor_map = [dims if isinstance(dims, list) else [dims] for dims in item["tensor_map"]]
        if item.get("field") or item.get("param_split_shape"):
            raise ValueError(UNEVEN)
        step, shards = item.get("opt_weight_shard_step", 0), item.get("opt_weight_shard_size", 0)
        items[name] = _checked(item["dev_matrix"], tensor_map, step, shards)
    return stage, items


def _checked(devices: list[int], tensor_map: list[list[int]], step: int, shards: int) -> Layout:
    """Return a layout whose numbers are possible.

    Raises:
        ValueError: they are not.
    """
    dims = [dim for row in tensor_map for dim in row]
    if not all(type(n) is int for n in (*devices, *dims, step, shards)) or max(len(devices), len(tensor_map)) > 32:
        raise ValueError("its device matrix or tensor map has impossible numbers")
    if not all(0 < n <= limits.RANKS for n in devices) or math.prod(devices) > limits.RANKS:
        raise ValueError(f"its device matrix is {devices}")
    if not all(-1 <= dim < len(devices) for dim in dims):
        raise ValueError(f"its tensor map {tensor_map} does not fit the device matrix {devices}")
    layout = Layout(tuple(devices), tuple(map(tuple, tensor_map)), shards)
    copies = [dim for dim in layout.copies() if devices[dim] > 1]
    num_copies = math.prod(devices[dim] for dim in copies)
    if not -1 <= shards <= num_copies or (shards > 0 and num_copies % shards):
        raise ValueError(f"its opt_weight_shard_size is {shards}, but only {num_copies} ranks have copies")
    is_one_group = len(copies) in (1, sum(n > 1 for n in devices))  # of several, transform_checkpoints ignores the step
    if shards > 1 and is_one_group and step != math.prod(devices[copies[-1] + 1 :]):
        raise ValueError(f"its opt_weight_shard_step {step} does not fit the device matrix {devices}")
    return layout
