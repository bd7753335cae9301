"""A power of what remains: transformers' `get_polynomial_decay_schedule_with_warmup`."""

from gpt2x.config import ScheduleConfig


def decay(progress: float, config: ScheduleConfig) -> float:
    """Return (1 - progress) ** power."""
    return (1.0 - progress) ** config.power
