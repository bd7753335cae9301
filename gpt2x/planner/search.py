"""Search the layouts of a number of devices, ranked by predicted speed, and single changes that save memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig, TrainerConfig
from gpt2x.config.layout import padded_for, validate_batch, validate_layout, validate_parallel, world_size
from gpt2x.errors import UserError
from gpt2x.model import stats
from gpt2x.optim.registry import state_names
from gpt2x.planner.limits import FULL, highest_stage, stage_of_layout
from gpt2x.planner.roofline import Plan, plan_layout, with_vocabulary
from gpt2x.trainable import trainable_of

RECOMPUTES = ("none", "attention", "block")
CLOSE = 0.05  # relative; the calibration misses its second published figure by more (docs/planning.md)


@dataclass(frozen=True)
class SearchResult:
    """The best plan of each data x tensor x pipeline mesh.

    Attributes:
        fitting: of meshes with a layout that fits, the fastest layout first.
        too_large: of the other meshes, the smallest layout each; the fastest of them first.
        num_plans: number of layouts planned.
    """

    fitting: tuple[Plan, ...]
    too_large: tuple[Plan, ...]
    num_plans: int


@dataclass(frozen=True)
class Advice:
    """A change, as overrides that can be typed, and the plan with it."""

    change: str
    plan: Plan


def search_layouts(config: TrainConfig) -> SearchResult:
    """Plan every layout of `config.num_devices` devices for the model and the global batch.

    Raises:
        UserError: no layout divides the model and the batch, or the hardware has no figures to rank layouts by.
    """
    hardware, trainer = config.hardware, replace(config.trainer, micro_batch_size=None)
    model = with_vocabulary(config)
    trainable, num_states = trainable_of(config, model), len(state_names(config.optimizer.kind))
    num_devices = config.num_devices or world_size(config.parallel)
    best: dict[tuple[int, int, int], Plan] = {}
    num_plans = 0
    highest = highest_stage(config, trainable)[0]
    for layout in layouts(num_devices, model, hardware, trainer, config.parallel, highest):
        plan = plan_layout(
            trainable.of_model(padded_for(model, layout)), layout, hardware, trainer, num_states,
            config.launch.num_nodes, highest,
        )  # fmt: skip
        if plan.speed is None:
            raise UserError(
                f"plan=search: conf/hardware/{hardware.name}.yaml has no figures to rank layouts by; give hardware."
                "peak_tflops, efficiency, memory_gb_per_s, link_gb_per_s and network_gb_per_s, or use plan=true."
            )
        num_plans += 1
        mesh = (layout.data, layout.tensor, layout.pipeline)
        if mesh not in best or merit(plan) > merit(best[mesh]):
            best[mesh] = plan
    if not best:
        raise UserError(
            f"num_devices={num_devices}: no layout divides trainer.global_batch_size={trainer.batch}, "
            f"model.num_heads={model.num_heads} and model.num_layers={model.num_layers}; use a different num_devices, "
            "or a trainer.global_batch_size that is a multiple of it."
        )
    ranked = sorted(best.values(), key=tokens_per_s, reverse=True)
    fitting = tuple(plan for plan in ranked if plan.fits)
    return SearchResult(fitting, tuple(plan for plan in ranked if not plan.fits), num_plans)


def tokens_per_s(plan: Plan) -> float:
    """Return the predicted tokens per second per device; 0 if the speed is not known."""
    return plan.speed.tokens_per_s if plan.speed else 0.0


def merit(plan: Plan) -> tuple[bool, float, float]:
    """Return a key that orders plans of the same mesh: first those that fit, then by speed, then by memory.

    Speeds are compared to three digits, so that of equally fast plans the one with more free memory wins. Plans that do
    not fit are ordered by memory only.
    """
    memory = -plan.fullest.memory.total
    return (True, float(f"{tokens_per_s(plan):.3g}"), memory) if plan.fits else (False, memory, 0.0)


def layouts(
    num_devices: int,
    model: ModelConfig,
    hardware: HardwareConfig,
    trainer: TrainerConfig,
    like: ParallelConfig,
    highest: int = FULL,
) -> Iterator[ParallelConfig]:
    """Yield every layout that divides the model and the batch; the tensor axis stays within a node.

    Args:
        num_devices: number of processes.
        model: with its vocabulary.
        hardware: the device.
        trainer: the batch.
        like: has what is not varied: `vocab_parallel`, `reduce_dtype`, `gather_ahead`.
        highest: the highest `zero_stage`.
    """
    for tensor in divisors(num_devices):
        if tensor > max(1, hardware.devices_per_node) and not hardware.is_cpu:
            continue
        for pipeline in divisors(num_devices // tensor):
            data = num_devices // tensor // pipeline
            if trainer.batch % data:
                continue
            for micro_batches in divisors(trainer.batch // data):
                if micro_batches < pipeline and micro_batches != trainer.batch // data:
                    continue  # a smaller micro batch waits less and takes less memory
                mesh = replace(
                    like, name=mesh_name(data, tensor, pipeline), data=data, tensor=tensor, pipeline=pipeline,
                    micro_batches=micro_batches,
                )  # fmt: skip
                for stage, shards in shardings(mesh, model, hardware, highest):
                    for recompute in RECOMPUTES if stage < FULL else ("block",):
                        for sequence_parallel in (False, True) if tensor > 1 else (False,):
                            layout = replace(
                                mesh, zero_stage=stage, optimizer_shards=shards, recompute=recompute,
                                sequence_parallel=sequence_parallel,
                            )  # fmt: skip
                            if is_valid(layout, model, trainer):
                                yield layout


def shardings(
    mesh: ParallelConfig, model: ModelConfig, hardware: HardwareConfig, highest: int
) -> Iterator[tuple[int, int]]:
    """Yield (zero_stage, optimizer_shards): nothing is split, by all replicas, or by those within a node."""
    yield 0, 1
    highest = min(highest, stage_of_layout(mesh, model, hardware)[0])
    in_node = hardware.devices_per_node // mesh.tensor
    accumulates = (mesh.micro_batches or 1) > 1 or mesh.pipeline > 1
    for stage in range(1, highest + 1):
        if stage == 2 and not accumulates:
            continue  # without sums of gradients it is 1
        yield stage, mesh.data
        if 1 < in_node < mesh.data and mesh.data % in_node == 0:
            yield stage, in_node


def mesh_name(data: int, tensor: int, pipeline: int) -> str:
    """Return the degrees above 1, as conf/parallel names them."""
    axes = (("dp", data), ("tp", tensor), ("pp", pipeline))
    return "_".join(f"{axis}{degree}" for axis, degree in axes if degree > 1) or "single"


def is_valid(layout: ParallelConfig, model: ModelConfig, trainer: TrainerConfig) -> bool:
    """Return True if a run accepts the layout."""
    try:
        validate_parallel(layout)
        validate_layout(layout, model)
        validate_batch(layout, trainer)
    except UserError:
        return False
    return True


def divisors(value: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    return [number for number in range(1, value + 1) if value % number == 0]


def advise(plan: Plan, num_nodes: int = 1) -> list[Advice]:
    """Return the single changes that save memory on the same number of devices, the smallest result first.

    If no single change is enough, a last entry combines several: the best one is applied until the plan fits.
    """
    single = improvements(plan, num_nodes)
    if any(advice.plan.fits for advice in single):
        return single
    overrides: list[str] = []
    current = plan
    while not current.fits:
        better = improvements(current, num_nodes)
        if not better:
            return single
        overrides.append(better[0].change)
        current = better[0].plan
    return [*single, Advice(" ".join(last_of_each_key(overrides)), current)]


def last_of_each_key(changes: list[str]) -> list[str]:
    """Return the overrides of all changes; a later one of the same key replaces an earlier one."""
    return list({word.split("=")[0]: word for change in changes for word in change.split()}.values())


def improvements(plan: Plan, num_nodes: int) -> list[Advice]:
    """Return the single changes that save at least 1 % of the fullest rank's memory, the smallest result first."""
    trainer = replace(plan.trainer, micro_batch_size=None)
    layout = replace(plan.parallel, micro_batches=plan.micro_batches)
    advice = []
    for change, model, changed in changes(plan, plan.model, layout):
        if is_valid(changed, model, trainer):
            trainable = plan.trainable.of_model(padded_for(model, changed))
            after = plan_layout(
                trainable, changed, plan.hardware, trainer, plan.num_states, num_nodes, plan.highest_stage
            )
            if after.fullest.memory.total < 0.99 * plan.fullest.memory.total:
                advice.append(Advice(change, after))
    return sorted(advice, key=lambda item: item.plan.fullest.memory.total)


def changes(
    plan: Plan, model: ModelConfig, layout: ParallelConfig
) -> Iterator[tuple[str, ModelConfig, ParallelConfig]]:
    """Yield (overrides, model, layout) of each change that can save memory."""

    def to(**values: int | str | bool) -> tuple[str, ModelConfig, ParallelConfig]:
        words = [f"parallel.{key}={str(value).lower()}" for key, value in values.items()]
        if "micro_batches" in values and plan.trainer.micro_batch_size is not None:
            words.append("trainer.micro_batch_size=null")  # the two keys exclude each other
        return " ".join(words), model, replace(layout, **values)  # type: ignore[arg-type]

    stage, highest = layout.zero_stage or 0, min(plan.highest_stage, stage_of_layout(layout, model, plan.hardware)[0])
    for higher in range(stage + 1, highest + 1):
        yield to(zero_stage=higher, **({"optimizer_shards": layout.data} if layout.shards == 1 else {}))
    if 1 < layout.shards < layout.data:
        yield to(optimizer_shards=layout.data)
    if layout.recompute != "block" and not layout.splits_weights:
        yield to(recompute="block")
        if layout.recompute == "none" and model.attention_dropout != 0:
            yield to(recompute="attention")
    if layout.tensor > 1 and not layout.sequence_parallel:
        yield to(sequence_parallel=True)
    if (
        plan.hardware.flash_attention
        and model.attention_dropout != 0
        and not stats.uses_flash_attention(model, plan.hardware)
    ):
        yield "model.attention_dropout=0", replace(model, attention_dropout=0.0), layout
    yield to(micro_batches=2 * layout.micro_batches if layout.micro_batches else 2)
    for axis in ("tensor", "pipeline"):
        degree = getattr(layout, axis)
        for factor in (2, 4, 8):
            data = layout.data // factor
            if layout.data % factor or (axis == "tensor" and degree * factor > plan.hardware.devices_per_node):
                continue
            changed = replace(layout, **{"data": data, axis: degree * factor})
            kept = min(stage, plan.highest_stage, stage_of_layout(changed, model, plan.hardware)[0])
            batches = (layout.micro_batches or 1) * factor  # keeps the micro batch size
            shards = min(layout.shards, data) if kept else 1
            yield to(**{"data": data, axis: degree * factor, "micro_batches": batches, "zero_stage": kept,
                        "optimizer_shards": shards})  # fmt: skip
