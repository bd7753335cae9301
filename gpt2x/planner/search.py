"""Layouts for a number of devices: those that fit, ranked by predicted speed, and single changes that save memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from gpt2x.config import HardwareConfig, ModelConfig, ParallelConfig, TrainConfig, TrainerConfig
from gpt2x.config.layout import validate_batch, validate_layout, validate_parallel, world_size
from gpt2x.errors import UserError
from gpt2x.optim.registry import state_names
from gpt2x.planner.roofline import Plan, plan, with_vocabulary
from gpt2x.trainable import trainable_of

RECOMPUTES = ("none", "attention", "block")
CLOSE = 0.05  # relative: the calibration itself misses its second figure by more (docs/planning.md)


@dataclass(frozen=True)
class Search:
    """What was found.

    Attributes:
        fitting: the best plan of each data x tensor x pipeline that fits, fastest first.
        too_large: of each that has none, the plan that comes closest, fastest first.
        num_plans: how many were made.
    """

    fitting: tuple[Plan, ...]
    too_large: tuple[Plan, ...]
    num_plans: int


@dataclass(frozen=True)
class Advice:
    """One change and the plan that it leads to."""

    change: str
    plan: Plan


def search(config: TrainConfig) -> Search:
    """Plan every layout of `config.num_devices` devices for the model and the global batch.

    Raises:
        UserError: no layout divides them, or the hardware's figures are not known.
    """
    hardware, trainer = config.hardware, replace(config.trainer, micro_batch_size=None)
    model = with_vocabulary(config)
    trainable, num_states = trainable_of(config, model), len(state_names(config.optimizer.kind))
    num_devices = config.num_devices or world_size(config.parallel)
    best: dict[tuple[int, int, int], Plan] = {}
    num_plans = 0
    for layout in layouts(num_devices, model, hardware, trainer, config.parallel.vocab_parallel):
        found = plan(trainable, layout, hardware, trainer, num_states, config.launch.num_nodes)
        if found.speed is None:
            raise UserError(
                f"plan=search: conf/hardware/{hardware.name}.yaml has no figures to rank layouts by; give hardware."
                "peak_tflops, efficiency, memory_gb_per_s, link_gb_per_s and network_gb_per_s, or use plan=true"
            )
        num_plans += 1
        mesh = (layout.data, layout.tensor, layout.pipeline)
        if mesh not in best or merit(found) > merit(best[mesh]):
            best[mesh] = found
    if not best:
        raise UserError(
            f"num_devices={num_devices}: no layout divides trainer.global_batch_size={trainer.global_batch_size}, "
            f"model.num_heads={model.num_heads} and model.num_layers={model.num_layers}; use another num_devices or "
            f"a trainer.global_batch_size that is a multiple of it"
        )
    ranked = sorted(best.values(), key=tokens_per_s, reverse=True)
    fitting = tuple(found for found in ranked if found.fits)
    return Search(fitting, tuple(found for found in ranked if not found.fits), num_plans)


def tokens_per_s(found: Plan) -> float:
    """Of one device."""
    return found.speed.tokens_per_s if found.speed else 0.0


def merit(found: Plan) -> tuple[bool, float, float]:
    """What makes a plan better than another of the same mesh: fits, then speed, then memory left over.

    Speeds are compared to a thousandth, so that of equally fast plans the one with more memory left stands. Of plans
    that do not fit, the smallest comes closest.
    """
    left = -found.fullest.memory.total
    return (True, float(f"{tokens_per_s(found):.3g}"), left) if found.fits else (False, left, 0.0)


def layouts(
    num_devices: int, model: ModelConfig, hardware: HardwareConfig, trainer: TrainerConfig, vocab_parallel: bool = True
) -> Iterator[ParallelConfig]:
    """Every layout that divides the model and the batch; the tensor axis stays within a node."""
    for tensor in divisors(num_devices):
        if tensor > max(1, hardware.devices_per_node) and not hardware.is_cpu:
            continue
        for pipeline in divisors(num_devices // tensor):
            data = num_devices // tensor // pipeline
            if trainer.global_batch_size % data:
                continue
            for micro_batches in divisors(trainer.global_batch_size // data):
                if micro_batches < pipeline and micro_batches != trainer.global_batch_size // data:
                    continue  # more waiting than work, and more memory, than with a smaller micro batch
                for shards in divisors(data):
                    for recompute in RECOMPUTES:
                        for sequence_parallel in (False, True) if tensor > 1 else (False,):
                            layout = ParallelConfig(
                                name=mesh_name(data, tensor, pipeline),
                                data=data,
                                tensor=tensor,
                                pipeline=pipeline,
                                micro_batches=micro_batches,
                                optimizer_shards=shards,
                                sequence_parallel=sequence_parallel,
                                vocab_parallel=vocab_parallel,
                                recompute=recompute,
                            )
                            if is_valid(layout, model, trainer):
                                yield layout


def mesh_name(data: int, tensor: int, pipeline: int) -> str:
    """The degrees above 1, as conf/parallel names them."""
    axes = (("dp", data), ("tp", tensor), ("pp", pipeline))
    return "_".join(f"{axis}{degree}" for axis, degree in axes if degree > 1) or "single"


def is_valid(layout: ParallelConfig, model: ModelConfig, trainer: TrainerConfig) -> bool:
    """Whether the program would take the layout."""
    try:
        validate_parallel(layout)
        validate_layout(layout, model)
        validate_batch(layout, trainer)
    except UserError:
        return False
    return True


def divisors(value: int) -> list[int]:
    """Of a positive number, ascending."""
    return [number for number in range(1, value + 1) if value % number == 0]


def advise(found: Plan, num_nodes: int = 1) -> list[Advice]:
    """Single changes that save memory on as many devices, the smallest result first; then what fits by several.

    The last one, where no single change is enough, takes the best change again and again until the plan fits.
    """
    single = improvements(found, num_nodes)
    if any(advice.plan.fits for advice in single):
        return single
    changes: list[str] = []
    current = found
    while not current.fits:
        better = improvements(current, num_nodes)
        if not better:
            return single
        changes.append(better[0].change)
        current = better[0].plan
    return [*single, Advice(" ".join(last_of_each_key(changes)), current)]


def last_of_each_key(changes: list[str]) -> list[str]:
    """Overrides, of which a later one of the same key replaces an earlier one."""
    return list({word.split("=")[0]: word for change in changes for word in change.split()}.values())


def improvements(found: Plan, num_nodes: int) -> list[Advice]:
    """The single changes that save at least a hundredth of the fullest rank, the smallest result first."""
    model, layout, trainer = found.model, found.parallel, replace(found.trainer, micro_batch_size=None)
    before = found.fullest.memory.total
    layout = replace(layout, micro_batches=found.micro_batches)
    advice = []
    for change, other_model, other in changes(found, model, layout):
        if is_valid(other, other_model, trainer):
            after = plan(
                found.trainable.of_model(other_model), other, found.hardware, trainer, found.num_states, num_nodes
            )
            if after.fullest.memory.total < 0.99 * before:
                advice.append(Advice(change, after))
    return sorted(advice, key=lambda item: item.plan.fullest.memory.total)


def changes(
    found: Plan, model: ModelConfig, layout: ParallelConfig
) -> Iterator[tuple[str, ModelConfig, ParallelConfig]]:
    """(overrides, model, layout) of each knob that can save memory."""

    def to(**values: int | str | bool) -> tuple[str, ModelConfig, ParallelConfig]:
        words = [f"parallel.{key}={str(value).lower()}" for key, value in values.items()]
        if "micro_batches" in values and found.trainer.micro_batch_size is not None:
            words.append("trainer.micro_batch_size=null")  # the two say the same
        return " ".join(words), model, replace(layout, **values)  # type: ignore[arg-type]

    if layout.optimizer_shards < layout.data:
        yield to(optimizer_shards=layout.data)
    if layout.recompute != "block":
        yield to(recompute="block")
    if layout.recompute == "none" and model.attention_dropout != 0:
        yield to(recompute="attention")
    if layout.tensor > 1 and not layout.sequence_parallel:
        yield to(sequence_parallel=True)
    if found.hardware.flash_attention and model.attention_dropout != 0:
        yield "model.attention_dropout=0", replace(model, attention_dropout=0.0), layout
    yield to(micro_batches=2 * layout.micro_batches if layout.micro_batches else 2)
    for axis in ("tensor", "pipeline"):
        degree = getattr(layout, axis)
        for factor in (2, 4, 8):
            data = layout.data // factor
            if layout.data % factor or (axis == "tensor" and degree * factor > found.hardware.devices_per_node):
                continue
            shards = min(layout.optimizer_shards, data)
            batches = (layout.micro_batches or 1) * factor  # the micro batch stays as large
            yield to(**{"data": data, axis: degree * factor, "micro_batches": batches, "optimizer_shards": shards})
