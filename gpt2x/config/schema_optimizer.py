"""The keys of an update: the optimizer, and the schedule of its learning rate."""

# ruff: noqa: RUF009  (`key` returns fields)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpt2x.config.metadata import NAME, RUN, SETTINGS, STEP, key


@dataclass
class OptimizerConfig:
    """How gradients change the weights; the states are fp32."""

    name: str = key(NAME, STEP)
    kind: str = key("the algorithm; adamw is Loshchilov and Hutter, arXiv:1711.05101", STEP, "adamw",
                    extensions="gpt2x.optim.optimizers")  # fmt: skip
    learning_rate: float = key("the schedule's peak", RUN, above=0)
    beta1: float = key("decay of the mean of gradients", STEP, 0.9, at_least=0, below=1)
    beta2: float = key("decay of the mean of squared gradients", STEP, 0.95, at_least=0, below=1)
    eps: float = key("added to the root of the mean square", STEP, 1e-8, above=0)
    weight_decay: float = key("on all weights but biases and layer norms", STEP, 0.1, at_least=0)
    bias_correction: bool = key("correct the means' bias towards 0; the reference's Adam does not", STEP, True)
    layer_decay: float | None = key("each layer's rate is this share of the rate of the layer above", STEP, None,
                                    above=0, at_most=1, null="all layers have one rate")  # fmt: skip
    settings: dict[str, Any] = key(SETTINGS, STEP, {})


@dataclass
class ScheduleConfig:
    """The learning rate over steps: a warmup to optimizer.learning_rate, then a decay to final_ratio of it."""

    name: str = key("the curve of the decay", RUN, extensions="gpt2x.optim.schedules")
    warmup_steps: int | None = key("steps of linear warmup", RUN, None, at_least=0, null="warmup_ratio, or none")
    warmup_ratio: float | None = key(
        "warmup as a share of all steps", RUN, None, at_least=0, below=1, null="warmup_steps"
    )
    final_ratio: float = key("last rate as a share of the peak", RUN, 0.1, at_least=0, at_most=1)
    num_cycles: int = key("cosine_restarts: how often the rate falls", RUN, 1, at_least=1)
    power: float = key("polynomial: its power", RUN, 1.0, above=0)
    settings: dict[str, Any] = key(SETTINGS, RUN, {})

    def num_warmup_steps(self, total_steps: int) -> int:
        """Return the steps of warmup, by `warmup_steps` or as a fraction of all steps."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((self.warmup_ratio or 0.0) * total_steps)
