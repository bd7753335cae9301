"""Half a cosine (Loshchilov and Hutter, arXiv:1608.03983): transformers' `get_cosine_schedule_with_warmup`."""

import math

from gpt2x.config import ScheduleConfig
from gpt2x.optim.schedules.base import Progress


def decay(progress: Progress, config: ScheduleConfig) -> float:
    """Return (1 + cos(pi progress)) / 2."""
    return 0.5 * (1.0 + math.cos(math.pi * progress.fraction))
