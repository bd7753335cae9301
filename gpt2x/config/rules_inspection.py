"""Rules for keys that look inside of a run: statistics of layers, limits of data, the sweep of the learning rate."""

from __future__ import annotations

from gpt2x.config.schema import STATS, TrainConfig
from gpt2x.config.schema_devices import ParallelConfig
from gpt2x.errors import require

OF_ACTIVATIONS = ("activations", "attention")  # of trainer.stats


def has_activations(parallel: ParallelConfig) -> bool:
    """Return whether each process has the residual stream of all layers and all tokens of its rows."""
    return parallel.pipeline == 1 and not parallel.splits_weights and not parallel.sequence_parallel


def validate_inspection(config: TrainConfig) -> None:
    """Check the keys of statistics and of the sweep of the learning rate."""
    validate_statistics(config)
    if config.lr_find.num_steps is not None:
        validate_lr_find(config)


def validate_statistics(config: TrainConfig) -> None:
    """Check that the layout has what is to be measured."""
    trainer, parallel = config.trainer, config.parallel
    if trainer.stats_every_steps is None:
        return
    require(
        bool(trainer.stats),
        f"trainer.stats=[] is empty, but trainer.stats_every_steps={trainer.stats_every_steps}; name some of "
        f"{', '.join(STATS)}, or use trainer.stats_every_steps=null.",
    )
    wrong = [kind for kind in trainer.stats if kind in OF_ACTIVATIONS]
    if not wrong or has_activations(parallel):
        return
    reason = (
        f"parallel.pipeline={parallel.pipeline} spreads the layers"
        if parallel.pipeline > 1
        else "parallel.zero_stage=3 has one block at a time"
        if parallel.splits_weights
        else "parallel.sequence_parallel=true spreads the tokens"
    )
    others = [kind for kind in trainer.stats if kind not in OF_ACTIVATIONS] or [
        kind for kind in STATS if kind not in OF_ACTIVATIONS
    ]
    require(
        False,
        f"trainer.stats=[{','.join(trainer.stats)}]: {' and '.join(wrong)} are measured where a process has all layers "
        f"and all tokens, but {reason}; use 'trainer.stats=[{','.join(others)}]'.",
    )


def validate_lr_find(config: TrainConfig) -> None:
    """Check the sweep, and that it starts a run of its own."""
    options = config.lr_find
    require(
        options.min_rate < options.max_rate,
        f"lr_find.min_rate={options.min_rate:g} is not below lr_find.max_rate={options.max_rate:g}; use a smaller "
        "lr_find.min_rate.",
    )
    require(
        config.resume is None,
        f"resume={config.resume}: the sweep of lr_find.num_steps={options.num_steps} starts from random weights or "
        "from load=DIR, and continues no run; use load= with the same directory.",
    )
    require(
        config.trainer.profile_steps is None,
        "trainer.profile_steps profiles a run that trains, and lr_find.num_steps only sweeps the rate; use "
        "trainer.profile_steps=null.",
    )
