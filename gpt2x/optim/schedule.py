"""The learning rate of an update (no mindspore).

Warmup and then one of `gpt2x.optim.schedules`, with a final rate above zero as MindFormers' `lr_end`: the schedule's
decay runs from 1 to 0, and the rate from its peak to peak * final_ratio.
"""

from __future__ import annotations

from gpt2x.config import ScheduleConfig
from gpt2x.extensions import Extensions
from gpt2x.optim.schedules.base import Progress

SCHEDULES = Extensions("gpt2x.optim.schedules", "decay", key="schedule.name")


def learning_rate(config: ScheduleConfig, peak: float, update: int, total_steps: int) -> float:
    """Return the rate of the `update`-th update, counted from 1.

    Warmup rises linearly and reaches `peak` at its last step; the last update has peak * final_ratio.

    Raises:
        UserError: there is no such schedule.
    """
    warmup = config.num_warmup_steps(total_steps)
    if update <= warmup:
        return peak * update / warmup
    decay = SCHEDULES.load(config.name)(Progress(update, max(1, warmup), total_steps), config)
    return peak * (config.final_ratio + (1.0 - config.final_ratio) * decay)
