"""What is checked before data are prepared, weights read or processes started: memory by the plan, and the device."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

from gpt2x.commands.inference_plan import inference_plan
from gpt2x.config import CommonConfig, HardwareConfig, TrainConfig
from gpt2x.config.layout import world_size
from gpt2x.config.options import known_models, read_option
from gpt2x.config.rules import require_devices
from gpt2x.errors import UserError, require
from gpt2x.model import stats
from gpt2x.planner.choose import settle, sharding_reason
from gpt2x.planner.inference import InferencePlan
from gpt2x.planner.memory import CPU_PROCESS_BYTES
from gpt2x.planner.report import inference_table, inference_verdict, memory_table, verdict
from gpt2x.planner.roofline import Plan, plan_run, with_vocabulary
from gpt2x.runtime.device import has_device, visible_devices
from gpt2x.runtime.memory import available_memory_gb

AnyConfig = TypeVar("AnyConfig", bound=CommonConfig)
ANYWAY = "launch.check_memory=false starts it anyway."


def check_start(config: CommonConfig) -> None:
    """Reject a run for which this machine has too few devices, no such device, or too little memory.

    Raises:
        UserError: with the plan's memory and what to type instead.
    """
    require_devices(config)
    if config.launch.check_memory:
        (require_memory if isinstance(config, TrainConfig) else require_inference_memory)(config)
    if not has_device(config.hardware.device_target):
        raise UserError(missing_device(config))
    require_visible(config)


def require_visible(config: CommonConfig) -> None:
    """Check that ASCEND_RT_VISIBLE_DEVICES shows a device for each process of this machine.

    Raises:
        UserError: it shows fewer.
    """
    visible, processes = visible_devices(), world_size(config.parallel) // config.launch.num_nodes
    require(
        config.hardware.is_cpu or visible is None or processes <= len(visible),
        f"parallel={config.parallel.name} starts {processes} processes on this machine, but ASCEND_RT_VISIBLE_DEVICES="
        f"{os.environ.get('ASCEND_RT_VISIBLE_DEVICES')} shows {len(visible or [])} devices; name more there, or use a "
        "smaller layout.",
    )


def require_memory(config: TrainConfig) -> None:
    """Compare the plan with the memory that is free here (CPU), or that the hardware option states.

    Raises:
        UserError: it does not fit.
    """
    config = with_free_memory(config)
    plan = plan_run(config)
    if plan.fits:
        return
    lines = [shortage(plan, config), memory_table(plan).text(), *verdict(plan, config.launch.num_nodes)]
    if config.hardware.is_cpu:
        lines.append(f"  {smaller_model(config)}")
    lines.append(f"plan=true shows the whole plan and starts nothing; {ANYWAY}")
    raise UserError("\n".join(lines))


def require_inference_memory(config: CommonConfig) -> None:
    """Compare the plan of an evaluation or a prediction with the memory that is free here, or that the option states.

    Raises:
        UserError: it does not fit.
    """
    plan = readable_plan(with_free_memory(config))
    if plan is None or plan.fits:
        return
    need, there = plan.memory.total / 1e9, max(0.0, plan.usable) / 1e9
    where = "this machine" if plan.hardware.is_cpu else f"hardware={plan.hardware.name}"
    lines = [
        f"load={config.load} does not fit {where}: {plan.work.what} needs {need:,.1f} GB per process, "
        f"and {there:,.1f} GB are there.",
        inference_table(plan).text(),
        *inference_verdict(plan),
        f"plan=true shows only the plan; {ANYWAY}",
    ]
    raise UserError("\n".join(lines))


def readable_plan(config: CommonConfig) -> InferencePlan | None:
    """Return the plan of an evaluation or a prediction; None if `load=` or the prompts cannot be read.

    The command says what is wrong with them, after the mistakes that it looks for first.
    """
    try:
        return inference_plan(config)
    except UserError:
        return None


def with_free_memory(config: AnyConfig) -> AnyConfig:
    """Return the configuration with the memory that is free on this machine, if the CPU computes."""
    hardware = config.hardware
    if not hardware.is_cpu:
        return config
    free_gb = min(available_memory_gb(), hardware.memory_gb or float("inf"))
    return replace(config, hardware=replace(hardware, memory_gb=free_gb))


def shortage(plan: Plan, config: TrainConfig) -> str:
    """Return what a run needs and what there is, in one sentence."""
    hardware = plan.hardware
    if not hardware.is_cpu:
        need, usable = plan.fullest.memory.total / 1e9, plan.usable / 1e9
        return (
            f"model={plan.model.name} parallel={plan.parallel.name} does not fit hardware={hardware.name}: it needs "
            f"{need:,.1f} GB per device, of which {usable:,.1f} GB can be used."
        )
    return (
        f"model={plan.model.name} parallel={plan.parallel.name} does not fit this machine: it needs "
        f"{needed_gb(plan, config):,.1f} GB, and {hardware.memory_gb:,.1f} GB are free."
    )


def needed_gb(plan: Plan, config: TrainConfig) -> float:
    """Return the memory of all processes on one machine's CPU, in GB."""
    processes = world_size(plan.parallel) // config.launch.num_nodes
    return processes * (plan.fullest.memory.total + CPU_PROCESS_BYTES) / 1e9


def smaller_model(config: TrainConfig) -> str:
    """Return the largest smaller model whose plan fits, as an override that can be typed."""
    size = num_params(config)
    fitting = []
    for name, model in known_models().items():
        shape = replace(
            config.model, name=name, num_layers=model.num_layers, num_heads=model.num_heads,
            hidden_size=model.hidden_size, max_seq_len=model.max_seq_len,
        )  # fmt: skip
        smaller = replace(config, model=shape)
        if num_params(smaller) < size and model.max_seq_len >= config.trainer.seq_len and fits(smaller):
            fitting.append((num_params(smaller), name))
    if not fitting:
        return "use a smaller model or layout, such as parallel=single."
    return f"model={max(fitting)[1]} fits."


def num_params(config: TrainConfig) -> int:
    """Return the parameters of a model with an assumed vocabulary."""
    return stats.num_params(with_vocabulary(config))


def fits(config: TrainConfig) -> bool:
    """Return whether the plan of a run fits; False if its layout does not divide the model."""
    try:
        return plan_run(config).fits
    except UserError:
        return False


def missing_device(config: CommonConfig) -> str:
    """Return what to type on a machine that lacks the device."""
    hardware = config.hardware
    message = (
        f"hardware={hardware.name}: this machine has no {hardware.device_target} device: the driver's /dev/davinci* "
        "are missing"
    )
    if not isinstance(config, TrainConfig):
        there = readable_plan(config)
        if there is None:
            return f"{message}; use hardware=cpu."
        return f"{message}. There, the plan {'fits' if there.fits else 'does not fit'}; use hardware=cpu here."
    plan, reason = plan_run(config), sharding_reason(config)
    here = with_free_memory(replace(config, hardware=read_option("hardware", "cpu", HardwareConfig)))
    here = settle(replace(here, parallel=replace(here.parallel, zero_stage=None, optimizer_shards=None)))
    on_cpu = plan_run(here)
    lines = [
        f"{message}. There, the plan {'fits' if plan.fits else 'does not fit'}: {plan.fullest.memory.total / 1e9:,.1f} "
        f"of {plan.usable / 1e9:,.1f} GB per device" + (f"; {reason}." if reason else "."),
        "  plan=true shows its memory and speed without a device.",
        f"  hardware=cpu needs {needed_gb(on_cpu, here):,.1f} GB, and {here.hardware.memory_gb:,.1f} GB are free"
        + (": it fits." if on_cpu.fits else f"; with less: {smaller_model(here)}"),
    ]
    return "\n".join(lines)
