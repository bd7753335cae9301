"""The learning rate of a step (floor 1; no mindspore).

Formulas as transformers' optimization.py (`get_*_schedule_with_warmup`), with a final rate above zero as
MindFormers' `lr_end`: decay(progress) runs from 1 to 0 and the factor from 1 to final_ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gpt2x.config import ScheduleConfig

DECAYS: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": lambda progress, schedule: 1.0,
    "linear": lambda progress, schedule: 1.0 - progress,
    "cosine": lambda progress, schedule: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "cosine_restarts": lambda progress, schedule: (
        0.0 if progress >= 1 else 0.5 * (1.0 + math.cos(math.pi * (progress * schedule.num_cycles % 1.0)))
    ),
    "polynomial": lambda progress, schedule: (1.0 - progress) ** schedule.power,
}


def num_warmup_steps(schedule: ScheduleConfig, total_steps: int) -> int:
    """Warmup in steps, from steps or a share of all steps."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return round((schedule.warmup_ratio or 0.0) * total_steps)


def learning_rate(schedule: ScheduleConfig, peak: float, update: int, total_steps: int) -> float:
    """The rate of the `update`-th update, counted from 1.

    Warmup rises linearly and reaches `peak` at its last step; the last update has peak * final_ratio.
    """
    warmup = num_warmup_steps(schedule, total_steps)
    if update <= warmup:
        return peak * update / warmup
    steps = max(1, total_steps - max(1, warmup))
    progress = min(1.0, (update - max(1, warmup)) / steps)
    decay = DECAYS[schedule.name](progress, schedule)
    return peak * (schedule.final_ratio + (1.0 - schedule.final_ratio) * decay)
