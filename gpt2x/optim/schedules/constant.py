"""The peak rate to the end: transformers' `get_constant_schedule_with_warmup`."""

from gpt2x.config import ScheduleConfig
from gpt2x.optim.schedules.base import Progress


def decay(progress: Progress, config: ScheduleConfig) -> float:
    """Return 1."""
    return 1.0
