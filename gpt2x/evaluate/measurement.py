"""What `evaluate.py` measures of one kind of model: the protocol that every kind implements."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from gpt2x.config import EvaluationConfig
from gpt2x.evaluate.bootstrap import Intervals, Scores
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.pretrained import Pretrained
from gpt2x.tracking import DataInput


class Measured(Protocol):
    """A model's metrics, and what each window or text contributed to them."""

    @property
    def metrics(self) -> dict[str, float]:
        """Values by metric."""

    @property
    def scores(self) -> Scores:
        """One entry per window or text."""


class Measurement(Protocol):
    """The measurements of one evaluation by name, or under the name "" if there is only one.

    Creating one raises UserError for everything that the user can correct.
    """

    evaluation: EvaluationConfig  # nulls replaced by what they stand for
    data_sha256: object  # for results.json
    data_hash: str

    @property
    def extent(self) -> str:
        """What the results cover, for a title."""

    @property
    def notes(self) -> Iterable[str]:
        """What a user should know before reading the numbers."""

    @property
    def inputs(self) -> Sequence[DataInput]:
        """The texts that are read, for a tracker."""

    def run(self, pretrained: Pretrained, replicas: ReplicaBatches) -> Mapping[str, Any]:
        """Measure the model; return a `Measured` per name."""

    def report(self, measured: Mapping[str, Any], intervals: Mapping[str, Intervals]) -> dict[str, object]:
        """Return the entries for `results.json`."""

    def save(self, folder: Path, prefix: str, title: str, measured: Mapping[str, Any]) -> list[Path]:
        """Write further files into `folder`, each name starting with `prefix`; return their paths."""

    def show(self, title: str, measured: Mapping[str, Any], intervals: Mapping[str, Intervals]) -> None:
        """Print a table."""
