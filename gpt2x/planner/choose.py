"""Fill in what a configuration leaves to its layout and device: `settle` (no mindspore).

`parallel.zero_stage=null` becomes the lowest stage whose planned memory fits the device. A settled configuration is its
own result, so that the processes of a run, which read what the launcher wrote, choose nothing again.
"""

from __future__ import annotations

from dataclasses import replace

from gpt2x.config import ParallelConfig, TrainConfig
from gpt2x.config.layout import padded_for, validate_batch, validate_parallel, with_batch, zero_stages
from gpt2x.config.rules import is_search
from gpt2x.errors import require
from gpt2x.planner.limits import highest_stage, stage_of_layout
from gpt2x.planner.roofline import Plan, plan_run, with_vocabulary
from gpt2x.trainable import trainable_of


def settle(config: TrainConfig) -> TrainConfig:
    """Return a validated configuration without nulls that the layout and the device decide.

    `trainer.global_batch_size` becomes a number, `model.pad_vocab_multiple` a multiple of the tensor degree,
    `parallel.zero_stage` a stage and `parallel.optimizer_shards` a number of replicas.

    Raises:
        UserError: the run cannot train with the `zero_stage` that was typed.
    """
    num_devices = config.num_devices if is_search(config) else None
    config = replace(
        config,
        trainer=with_batch(config.trainer, config.parallel, num_devices),
        model=padded_for(config.model, config.parallel),
    )
    parallel, highest = config.parallel, highest_of(config)
    require(
        (parallel.zero_stage or 0) <= highest[0],
        f"parallel.zero_stage={parallel.zero_stage} cannot train this run because of {highest[1]}; use "
        f"parallel.zero_stage={highest[0]}, or null for the lowest that fits.",
    )
    if parallel.zero_stage is None:
        parallel = lowest_that_fits(config, highest[0])
    settled = replace(config, parallel=with_shards(parallel))
    validate_parallel(settled.parallel)
    validate_batch(settled.parallel, settled.trainer)
    return settled


def highest_of(config: TrainConfig) -> tuple[int, str]:
    """Return the highest `zero_stage` of a run in its layout, and the key that limits it; "" if none does."""
    of_layout = stage_of_layout(config.parallel, config.model, config.hardware)
    if of_layout[0] == 0:
        return of_layout
    stage, key = min(
        of_layout, highest_stage(config, trainable_of(config, with_vocabulary(config))), key=lambda each: each[0]
    )
    return stages_up_to(stage, config.parallel)[-1], key


def stages_up_to(highest: int, parallel: ParallelConfig) -> list[int]:
    """Return the values of `zero_stage` up to `highest` that a layout can have."""
    return [stage for stage in zero_stages(parallel) if stage <= highest]


def lowest_that_fits(config: TrainConfig, highest: int) -> ParallelConfig:
    """Return the layout with the lowest `zero_stage` whose plan fits the device; the highest if none does."""
    parallel = config.parallel
    if parallel.data == 1 or parallel.optimizer_shards == 1:
        return replace(parallel, zero_stage=0)
    stages = stages_up_to(highest, parallel)
    if parallel.optimizer_shards is not None:
        stages.remove(0)  # shards were asked for, so something has to be split
    fitting = (stage for stage in stages if plan_of_stage(config, stage).fits)
    return replace(parallel, zero_stage=next(fitting, highest))


def with_shards(parallel: ParallelConfig) -> ParallelConfig:
    """Return the layout with `optimizer_shards` filled in: the replicas among which `zero_stage` splits."""
    return replace(parallel, optimizer_shards=parallel.shards)


def plan_of_stage(config: TrainConfig, stage: int) -> Plan:
    """Return the plan of a run with a different `zero_stage`."""
    shards = config.parallel.optimizer_shards if config.parallel.shards > 1 else None
    layout = replace(config.parallel, zero_stage=stage, optimizer_shards=shards if stage else None)
    return plan_run(replace(config, parallel=with_shards(layout)))


def sharding_reason(config: TrainConfig) -> str:
    """Return the `zero_stage` of a settled configuration, and what the stage below would need.

    Such as "zero_stage 3 over 8 replicas: stage 2 would need 95 of 59 GB". "" if there is one replica.
    """
    parallel = config.parallel
    if parallel.data == 1:
        return ""
    stage = parallel.zero_stage or 0
    if stage == 0:
        return f"zero_stage 0: each of {parallel.data} replicas keeps everything"
    lower = stages_up_to(stage, parallel)[-2]
    below = plan_of_stage(config, lower)
    need, usable = below.fullest.memory.total / 1e9, below.usable / 1e9
    replicas = f"{parallel.shards}" if parallel.shards == parallel.data else f"{parallel.shards} of {parallel.data}"
    return f"zero_stage {stage} over {replicas} replicas: stage {lower} would need {need:,.1f} of {usable:,.1f} GB"
