"""Runs of train.py in a layout, and how far they are from the run of one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpt2x import checkpoint
from tests.train import runs

TINY = ["model=gpt2_tiny", "model.max_seq_len=32", "trainer.seq_len=32", "trainer.global_batch_size=8",
        "trainer.max_steps=20", "trainer.eval_every_steps=10", "trainer.checkpoint_every_steps=6",
        "trainer.keep_last=9", "trainer.keep_best=false", "trainer.sample_prompts=[]", "model.dropout=0",
        "tokenizer.vocab_size=300", "tracker=none", "dataset=text", "hardware.peak_tflops=0.1"]  # fmt: skip


class Runs:
    """Runs on one corpus, each made once; `of` gives a run's directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.corpus = runs.corpus(directory)
        self.found: dict[tuple[str, ...], Path] = {}

    def of(self, *overrides: str) -> Path:
        """The directory of the run with these overrides."""
        if overrides not in self.found:
            outputs = self.directory / f"outputs_{len(self.found)}"
            self.start(outputs, *overrides)
            (metrics,) = outputs.rglob("metrics.jsonl")
            self.found[overrides] = metrics.parent
        return self.found[overrides]

    def start(self, outputs: Path, *overrides: str) -> str:
        """Run train.py to its end; what it printed."""
        paths = [f"paths.outputs={outputs}", f"paths.cache={self.directory}/cache", f"dataset.path={self.corpus}"]
        return runs.start("train.py", *TINY, *paths, *overrides).stdout


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


def distance(run_dir: Path, reference: Path, *, step: int, first: int = 1, group: str = "weights") -> Distance:
    """How far a run is from another at the checkpoint of `step`, its curve compared from step `first` to there.

    `group` names what is trained in the checkpoint: weights, or adapter.
    """
    steps = range(first, step + 1)
    mine, theirs = runs.curve(run_dir), runs.curve(reference)
    keys = ("train/lr", "train/epoch", "train/tokens")
    positions = [runs.curve(path, *keys) for path in (run_dir, reference)]
    assert all(positions[0][number] == positions[1][number] for number in steps)
    validation = [runs.curve(path, "val/loss") for path in (run_dir, reference)]
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
    """Name and values of each tensor in both checkpoints of a step."""
    mine, theirs = (saved(path, step) for path in (run_dir, reference))
    assert set(mine.names(group)) == set(theirs.names(group))
    for name in theirs.names(group):
        values = mine.tensor(group, name), theirs.tensor(group, name)
        assert values[0].shape == values[1].shape
        yield name, *values


def saved(run_dir: Path, step: int) -> checkpoint.Checkpoint:
    """The checkpoint of a step."""
    return checkpoint.open_checkpoint(run_dir / "checkpoints" / f"step_{step}")


def relative(found: np.ndarray | float, wanted: np.ndarray | float) -> float:
    """The largest difference over the largest value."""
    assert np.shape(found) == np.shape(wanted)
    largest = np.abs(wanted).max()
    return float(np.abs(np.subtract(found, wanted)).max() / largest) if largest else float(np.abs(found).max())
