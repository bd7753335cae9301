"""The learning rate of an update (no mindspore).

Warmup and then one of `gpt2x.optim.schedules`, with a final rate above zero as MindFormers' `lr_end`: the schedule's
decay runs from 1 to 0, and the rate from its peak to peak * final_ratio.
"""

from __future__ import annotations

from gpt2x.config import ScheduleConfig
from gpt2x.extensions import Extensions

SCHEDULES = Extensions("gpt2x.optim.schedules", "decay", key="schedule.name")


def num_warmup_steps(config: ScheduleConfig, total_steps: int) -> int:
    """Return the steps of warmup, by `warmup_steps` or as a fraction of all steps."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return round((config.warmup_ratio or 0.0) * total_steps)


def learning_rate(config: ScheduleConfig, peak: float, update: int, total_steps: int) -> float:
    """Return the rate of the `update`-th update, counted from 1.

    Warmup rises linearly and reaches `peak` at its last step; the last update has peak * final_ratio.

    Raises:
        UserError: there is no such schedule.
    """
    warmup = num_warmup_steps(config, total_steps)
    if update <= warmup:
        return peak * update / warmup
    steps = max(1, total_steps - max(1, warmup))
    progress = min(1.0, (update - max(1, warmup)) / steps)
    decay = SCHEDULES.load(config.name)(progress, config)
    return peak * (config.final_ratio + (1.0 - config.final_ratio) * decay)
