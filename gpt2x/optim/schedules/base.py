"""Where an update stands between the end of warmup and the end of the run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """The position of an update after warmup.

    Attributes:
        update: its number, from 1.
        warmup: updates of warmup, at least 1: without warmup the first update has the peak rate.
        total: updates of the run.
    """

    update: int
    warmup: int
    total: int

    @property
    def fraction(self) -> float:
        """From 0 at the last update of warmup to 1 at the last update of the run."""
        return min(1.0, (self.update - self.warmup) / max(1, self.total - self.warmup))
