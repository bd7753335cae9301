"""Norms of logical tensors, whose values are spread over the processes of a layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from gpt2x.config import ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.trainable import Trainable

Values = dict[str, list[np.ndarray]]  # boxes of logical tensors that this process counts
Squares = dict[str, float]  # sums of squares by the name of a logical tensor


def trained_names(trainable: Trainable, parallel: ParallelConfig) -> list[str]:
    """Return the logical tensors that a run trains, on whatever process."""
    return list(trainable.trained_placements(one_process(parallel)))


def stored_names(trainable: Trainable, parallel: ParallelConfig) -> list[str]:
    """Return the logical tensors that the checkpoints of a run hold, from whatever process."""
    return list(trainable.stored_placements(one_process(parallel)))


def one_process(parallel: ParallelConfig) -> Coordinates:
    """Return the coordinates of a process that has everything."""
    return Coordinates(replace(parallel, data=1, tensor=1, pipeline=1, zero_stage=0, optimizer_shards=None), 0)


def snapshot(tensors: RankTensors, names: Sequence[str]) -> Values:
    """Copy this process's boxes of the tensors `names`; each value is copied by one process of the layout."""
    slices = tensors.weights()
    return {name: [np.array(part) for _, part in slices[name].parts] for name in names if name in slices}


def squares(values: Values) -> Squares:
    """Return the sums of squares of this process's boxes."""
    return {name: sum(square(part) for part in parts) for name, parts in values.items()}


def square_differences(tensors: RankTensors, before: Values) -> Squares:
    """Return the sums of squares of what changed since `snapshot`."""
    slices = tensors.weights()
    return {
        name: sum(square(now - then) for (_, now), then in zip(slices[name].parts, parts, strict=True))
        for name, parts in before.items()
    }


def square(values: np.ndarray) -> float:
    """Return the sum of squares of an fp32 array."""
    flat = np.ravel(values)
    return float(np.vdot(flat, flat))


def over_processes(mesh: Mesh, names: Sequence[str], local: Squares) -> np.ndarray:
    """Return the sums of squares over all processes, fp64 (len(names),); every process calls this."""
    return mesh.gather(np.array([local.get(name, 0.0) for name in names])).sum(axis=0)


def by_label(names: Sequence[str], values: np.ndarray, per: str) -> Squares:
    """Return sums over the tensors of one label: the layer, or the tensor itself."""
    sums: Squares = {}
    for name, value in zip(names, values.tolist(), strict=True):
        label = layer_of(name) if per == "layer" else name
        sums[label] = sums.get(label, 0.0) + value
    return sums


def layer_of(name: str) -> str:
    """Return the layer of a logical tensor: `h.3`, or what stands alone, such as `wte` and `ln_f`."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "h" else parts[0]


def norms(sums: Mapping[str, float]) -> dict[str, float]:
    """Return square roots."""
    return {label: float(np.sqrt(value)) for label, value in sums.items()}
