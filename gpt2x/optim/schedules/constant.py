"""The peak rate to the end: transformers' `get_constant_schedule_with_warmup`."""

from gpt2x.config import ScheduleConfig


def decay(progress: float, config: ScheduleConfig) -> float:
    """Return 1."""
    return 1.0
