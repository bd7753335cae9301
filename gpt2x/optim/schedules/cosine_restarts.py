"""Half cosines, `num_cycles` of them, each from the peak (Loshchilov and Hutter, arXiv:1608.03983).

As transformers' `get_cosine_with_hard_restarts_schedule_with_warmup`.
"""

import math

from gpt2x.config import ScheduleConfig
from gpt2x.optim.schedules.base import Progress


def decay(progress: Progress, config: ScheduleConfig) -> float:
    """Return (1 + cos(pi (num_cycles progress mod 1))) / 2, and 0 at the end."""
    if progress.fraction >= 1:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * (progress.fraction * config.num_cycles % 1.0)))
