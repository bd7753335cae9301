"""How far a run in a layout is from the run of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2x import checkpoint
from tests.support.small_runs import curve


@dataclasses.dataclass
class Distance:
    """The largest differences of a run from another one.

    Attributes:
        loss: of train/loss, relative.
        norm: of train/grad_norm, relative.
        validation: of val/loss, relative.
        weights: of any weight, absolute.
        states: of any optimizer state, over the largest of its tensor.
    """

    loss: float
    norm: float
    validation: float
    weights: float
    states: float


def distance(run_dir: Path, reference: Path, *, step: int, group: str = "weights") -> Distance:
    """Return how far a run is from another at the checkpoint of `step`, and its curve up to there.

    `group` names what is trained in the checkpoint: weights, or adapter.
    """
    steps = range(1, step + 1)
    mine, theirs = curve(run_dir), curve(reference)
    keys = ("train/lr", "train/epoch", "train/tokens")
    positions = [curve(path, *keys) for path in (run_dir, reference)]
    assert all(positions[0][number] == positions[1][number] for number in steps)
    validation = [curve(path, "val/loss") for path in (run_dir, reference)]
    evaluated = [number for number in steps if validation[1][number][0] is not None]
    assert evaluated
    return Distance(
        loss=max(relative(mine[number][0], theirs[number][0]) for number in steps),
        norm=max(relative(mine[number][2], theirs[number][2]) for number in steps),
        validation=max(relative(validation[0][number][0], validation[1][number][0]) for number in evaluated),
        weights=max(np.abs(a - b).max() for _, a, b in pairs(group, run_dir, reference, step)),
        states=max(relative(a, b) for _, a, b in pairs("optimizer", run_dir, reference, step)),
    )


def pairs(group: str, run_dir: Path, reference: Path, step: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name and values of each tensor in both checkpoints of a step."""
    mine, theirs = (saved(path, step) for path in (run_dir, reference))
    assert set(mine.names(group)) == set(theirs.names(group))
    for name in theirs.names(group):
        values = mine.tensor(group, name), theirs.tensor(group, name)
        assert values[0].shape == values[1].shape
        yield name, *values


def saved(run_dir: Path, step: int) -> checkpoint.Checkpoint:
    """Return the checkpoint of a step."""
    return checkpoint.open_checkpoint(run_dir / "checkpoints" / f"step_{step}")


def relative(values: np.ndarray | float, expected: np.ndarray | float) -> float:
    """Return the largest difference over the largest value."""
    assert np.shape(values) == np.shape(expected)
    largest = np.abs(expected).max()
    return float(np.abs(np.subtract(values, expected)).max() / largest) if largest else float(np.abs(values).max())


def check_equal(run_dir: Path, reference: Path, *, step: int, group: str = "weights") -> Distance:
    """Assert that a run is that of one process, up to rounding.

    Sums in another order round differently. The bounds: losses 1e-5, gradient norms 1e-4, weights (absolute) 1e-4,
    which is a tenth of what one update at the full learning rate can change.
    """
    difference = distance(run_dir, reference, step=step, group=group)
    print(difference)
    assert difference.loss <= 1e-5
    assert difference.validation <= 1e-5
    assert difference.norm <= 1e-4
    assert difference.weights <= 1e-4
    return difference
