"""A power of what remains: transformers' `get_polynomial_decay_schedule_with_warmup`."""

from gpt2x.config import ScheduleConfig
from gpt2x.optim.schedules.base import Progress


def decay(progress: Progress, config: ScheduleConfig) -> float:
    """Return (1 - progress) ** power."""
    return (1.0 - progress.fraction) ** config.power
