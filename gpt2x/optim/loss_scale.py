"""Dynamic loss scale for fp16 (Micikevicius et al., arXiv:1710.03740, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class LossScale:
    """The scale, and how many finite updates it has stood for.

    `window` finite updates in a row multiply it by `factor`, an update with non-finite gradients divides it. With
    factor 1 it is constant: fp32 and bf16 use `LossScale(1.0, 1.0, 1)`.
    """

    scale: float
    factor: float
    window: int
    num_finite: int = 0

    def update(self, finite: bool) -> None:
        """Account for one update."""
        if not finite:
            self.scale = max(1.0, self.scale / self.factor)
            self.num_finite = 0
            return
        self.num_finite += 1
        if self.num_finite >= self.window:
            self.scale, self.num_finite = self.scale * self.factor, 0
