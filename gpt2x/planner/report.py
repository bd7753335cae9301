"""Print a plan or a search as tables, with messages about what fits and what was assumed (no mindspore)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2x.config import ParallelConfig, TrainConfig
from gpt2x.config.layout import bubble_fraction, world_size
from gpt2x.config.schema_devices import FLASH_KERNEL
from gpt2x.model import stats
from gpt2x.planner.choose import sharding_reason
from gpt2x.planner.communication import Collective
from gpt2x.planner.inference import InferencePlan, smaller_plans
from gpt2x.planner.roofline import Plan, plan_run, with_vocabulary
from gpt2x.planner.search import CLOSE, SearchResult, advise, search_layouts, tokens_per_s
from gpt2x.runtime.console import console

NUM_BEST, NUM_TOO_LARGE = 15, 5  # rows of the two tables of a search


@dataclass(frozen=True)
class Table:
    """A table for the terminal or for Markdown."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return aligned columns; a narrow terminal breaks only the last one."""
        rows = [self.columns, *self.rows]
        widths = [max(len(row[index]) for row in rows) for index in range(len(self.columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([self.title, *(f"  {line}" for line in lines), ""])

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [f"| {' | '.join(self.columns)} |", "|" + "---|" * len(self.columns)]
        return "\n".join([f"**{self.title}**\n", *lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


def show_plan(config: TrainConfig) -> None:
    """Print the plan of a run, or the search for layouts if `config.plan` is search; no data is read.

    Raises:
        UserError: the layout does not divide the model or the batch, or the hardware has no figures to rank layouts by.
    """
    if config.plan.lower() == "search":
        tables, notes = search_tables(search_layouts(config), config), []
    else:
        plan = plan_run(config)
        tables, notes = plan_tables(plan), verdict(plan, config.launch.num_nodes)
        notes += filter(None, [sharding_reason(config)])
    for table in tables:
        console.notice(table.text())
    for note in [*notes, *assumptions(config)]:
        console.notice(note)


# ---- one layout


def plan_tables(plan: Plan) -> list[Table]:
    """Return memory, communication and speed of a layout."""
    return [memory_table(plan), *communication_table(plan), *speed_table(plan)]


def memory_table(plan: Plan) -> Table:
    """Return parameters and memory of each kind of rank."""
    kinds = plan.ranks
    parts = [name for name, _ in kinds[0].memory if any(dict(rank.memory)[name] for rank in kinds)]
    per_stage = plan.parallel.data * plan.parallel.tensor
    rows = [
        ["ranks", *(f"{len(rank.stages) * per_stage}" for rank in kinds)],
        ["layers", *(f"{rank.layers}" for rank in kinds)],
        ["parameters", *(f"{rank.values.parameters:,}" for rank in kinds)],
        *([f"{part}, GB", *(gb(dict(rank.memory)[part]) for rank in kinds)] for part in parts),
        ["memory, GB", *(gb(rank.memory.total) for rank in kinds)],
        ["usable, GB", *([gb(plan.usable)] * len(kinds))],
    ]
    return Table(f"{title(plan)}: memory per device", ["", *(rank.name for rank in kinds)], rows)


def title(plan: Plan) -> str:
    """Return model, layout, device and batch in one line."""
    layout = plan.parallel
    return (
        f"{plan.model.name}, {layout.name} ({layout.data} x {layout.tensor} x {layout.pipeline}) on "
        f"{plan.hardware.name}, {plan.hardware.precision}, {plan.trainer.batch} x {plan.trainer.seq_len} "
        f"tokens as {layout.data} x {plan.micro_batches} x {plan.micro_batch_size} sequences, "
        f"recompute {recompute_of(layout)}, {sharding_of(layout)}"
    )


def sharding_of(layout: ParallelConfig) -> str:
    """Return what replicas split, and how many of them."""
    stage = layout.zero_stage if layout.zero_stage is not None else int(layout.shards > 1)
    return f"zero_stage {stage}" + (f" over {layout.shards} of {layout.data} replicas" if layout.shards > 1 else "")


def recompute_of(layout: ParallelConfig) -> str:
    """Return what a run computes again; full sharding computes every block again."""
    return "block" if layout.splits_weights else layout.recompute


def communication_table(plan: Plan) -> list[Table]:
    """Return what a device of each kind sends in an update, and how long it takes; no table for a single device."""
    lines: dict[tuple[str, str, str], dict[str, Collective]] = {}
    for rank in plan.ranks:
        for part in rank.collectives:
            link = "between nodes" if part.crosses_nodes else "within a node"
            lines.setdefault((part.axis, part.payload, link), {})[rank.name] = part
    if not lines:
        return []
    rows = [[*key, *(sent(parts.get(rank.name)) for rank in plan.ranks)] for key, parts in lines.items()]
    columns = ["axis", "what", "link", *(rank.name for rank in plan.ranks)]
    title = "communication per device and update: GB sent, seconds exposed, seconds hidden by compute"
    return [Table(title, columns, rows)]


def sent(part: Collective | None) -> str:
    """Return GB, the seconds in which nothing else happens, and those that pass while the device computes."""
    if part is None:
        return ""
    return gb(part.sent) + ("" if part.seconds is None else f", {part.seconds:.3f}, {part.hidden_s:.3f}")


def speed_table(plan: Plan) -> list[Table]:
    """Return the time of an update and how it is spent; no table if the hardware has no figures."""
    speed, layout = plan.speed, plan.parallel
    if speed is None:
        return []
    devices = world_size(layout)
    rows = [
        ["update", f"{speed.update_s:.3f} s"],
        *(
            [part, f"{seconds:.3f} s, {seconds / speed.update_s:.1%}"]
            for part, seconds in speed.seconds_by_part.items()
        ),
        *communication_rows(plan),
        ["bubble with equal stages", f"{bubble_fraction(layout.pipeline, plan.micro_batches):.1%}"],
        ["FLOPs per device", f"{max(rank.flops for rank in plan.ranks):.3g}, recomputation included"],
        ["tokens/s per device", f"{speed.tokens_per_s:,.0f}"],
        [f"tokens/s of {devices} devices", f"{speed.tokens_per_s * devices:,.0f}"],
        ["MFU", f"{speed.mfu:.1%}"],
    ]
    return [Table("predicted speed, and how the busiest stage spends an update", ["", "value"], rows)]


def communication_rows(plan: Plan) -> list[list[str]]:
    """Return how much of the busiest stage's communication costs time, and how much computation hides."""
    parts = plan.busiest.collectives
    exposed, hidden = sum(part.seconds or 0.0 for part in parts), sum(part.hidden_s for part in parts)
    if not parts:
        return []
    return [["communication", f"{exposed:.3f} s exposed, {hidden:.3f} s hidden by compute"]]


def verdict(plan: Plan, num_nodes: int = 1) -> list[str]:
    """Return whether the layout fits, and which changes would make it fit."""
    rank = plan.fullest
    total, usable = rank.memory.total, plan.usable
    if plan.fits:
        return [f"fits: {gb(total)} of {gb(usable)} GB ({rank.name})"]
    lines = [
        f"does not fit: {gb(total)} of {gb(usable)} GB ({rank.name}); the largest part is {rank.memory.largest}, "
        f"{gb(dict(rank.memory)[rank.memory.largest])} GB"
    ]
    for advice in advise(plan, num_nodes):
        after = advice.plan.fullest.memory.total
        speed = f", {tokens_per_s(advice.plan):,.0f} tokens/s per device" if advice.plan.speed else ""
        lines.append(
            f"  {advice.change}: {gb(after)} GB, {gb(total - after)} less, "
            f"{'fits' if advice.plan.fits else 'not enough'}{speed}"
        )
    if len(lines) == 1:
        lines.append(
            "  no change of the layout saves memory on this number of devices; use more devices or a smaller model."
        )
    return lines


# ---- scoring and decoding


def inference_table(plan: InferencePlan) -> Table:
    """Return memory and speed of an evaluation or a prediction."""
    layout, hardware = plan.parallel, plan.hardware
    rows = [[f"{part}, GB", gb(size)] for part, size in plan.memory if size]
    rows += [["memory, GB", gb(plan.memory.total)], ["usable, GB", gb(plan.usable)]]
    if plan.seconds is not None:
        rows += [[f"{part}, ms", f"{1e3 * seconds:.1f}"] for part, seconds in plan.seconds.items()]
        rows.append(["tokens/s of a replica", f"{plan.tokens_per_s:,.1f}"])
    title = (
        f"{plan.model.name}, {layout.name} ({layout.data} x {layout.tensor}) on {hardware.name}, "
        f"{hardware.precision}: {plan.work.what}, per process"
    )
    return Table(title, ["", "value"], rows)


def inference_verdict(plan: InferencePlan) -> list[str]:
    """Return whether an evaluation or a prediction fits, and the changes that would save memory."""
    total = plan.memory.total
    if plan.fits:
        return [f"fits: {gb(total)} of {gb(plan.usable)} GB"]
    part, size = max(plan.memory, key=lambda kind: kind[1])
    lines = [f"does not fit: {gb(total)} of {gb(plan.usable)} GB; the largest part is {part}, {gb(size)} GB"]
    for change, after in smaller_plans(plan):
        if after.memory.total < 0.99 * total:
            verdict = "fits" if after.fits else "not enough"
            lines.append(f"  {change}: {gb(after.memory.total)} GB, {verdict}")
    return lines


def gb(size: float) -> str:
    """Return bytes in GB of 1e9 bytes."""
    return f"{size / 1e9:,.2f}"


def assumptions(config: TrainConfig) -> list[str]:
    """Return what the plan assumes because nothing is read or run, and why it predicts no speed."""
    hardware, model, notes = config.hardware, config.model, []
    if model.vocab_size is None:
        source = "tokenizer.vocab_size" if config.tokenizer.vocab_size else "GPT-2's"
        size = with_vocabulary(config).vocab_size
        notes.append(
            f"model.vocab_size=null: {size:,} tokens are assumed ({source}); the run takes the size from its tokenizer."
        )
    if not hardware.is_cpu and hardware.memory_gb:
        share = hardware.usable_gb / hardware.memory_gb
        notes.append(f"hardware.memory_gb={hardware.memory_gb:g}: {share:.0%} of it are usable (docs/planning.md).")
    if hardware.flash_attention and not stats.uses_flash_attention(model, hardware):
        notes.append(f"no flash attention: it requires {FLASH_KERNEL}.")
    needed = ["peak_tflops", "efficiency", "memory_gb_per_s"]
    if (config.num_devices or world_size(config.parallel)) > 1:
        needed += ["link_gb_per_s", "network_gb_per_s"]
    missing = [f"hardware.{key}" for key in needed if getattr(hardware, key) is None]
    if hardware.is_cpu and not (hardware.computes_natively and hardware.precision == "fp32"):
        missing.append("calibration without hardware.native_kernels=true and hardware.precision=fp32")
    if missing:
        notes.append(f"hardware={hardware.name}: speed is not predicted without {', '.join(missing)}.")
    return notes


# ---- a search


def search_tables(result: SearchResult, config: TrainConfig) -> list[Table]:
    """Return the best layouts that fit, and what limits those that do not."""
    num_devices = config.num_devices or world_size(config.parallel)
    head = (
        f"{config.model.name} on {num_devices} x {config.hardware.name}, {config.trainer.batch} x "
        f"{config.trainer.seq_len} tokens per update, tokens/s per device"
    )
    tables = []
    if result.fitting:
        count = min(NUM_BEST, len(result.fitting))
        best = tokens_per_s(result.fitting[0])
        rows = [[*layout_row(plan), overhead(plan), gap(plan, best)] for plan in result.fitting[:count]]
        tables.append(
            Table(
                f"{head}: best {count} of {len(result.fitting)} meshes that fit ({result.num_plans:,} layouts planned)",
                [*LAYOUT, "largest overhead", "against the best"],
                rows,
            )
        )
    if result.too_large:
        rows = [[*layout_row(plan), excess(plan)] for plan in result.too_large[:NUM_TOO_LARGE]]
        tables.append(
            Table(f"{head}: fastest meshes that do not fit, each with its smallest layout", [*LAYOUT, "limit"], rows)
        )
    return tables


LAYOUT = ("mesh", "batches", "zero_stage", "recompute", "seq.", "GB", "tokens/s", "MFU")


def layout_row(plan: Plan) -> list[str]:
    """Return the options of a layout, its memory and its speed."""
    layout, speed = plan.parallel, plan.speed
    return [
        layout.name,
        f"{plan.micro_batches} x {plan.micro_batch_size}",
        sharding_column(layout),
        recompute_of(layout),
        "yes" if layout.sequence_parallel else "no",
        f"{plan.fullest.memory.total / 1e9:.1f}",
        f"{tokens_per_s(plan):,.0f}",
        f"{speed.mfu:.1%}" if speed else "",
    ]


def sharding_column(layout: ParallelConfig) -> str:
    """Return the stage, and the shards if they are fewer than the replicas."""
    return f"{layout.zero_stage}" + (f" over {layout.shards}" if 1 < layout.shards < layout.data else "")


def gap(plan: Plan, best: float) -> str:
    """Return how much slower a layout is than the fastest, and whether the prediction is precise enough to tell."""
    missing = 1 - tokens_per_s(plan) / best
    if missing < 0.001:
        return "best" if missing == 0 else "tie"
    return f"-{missing:.1%}" + (", too close to tell" if missing < CLOSE else "")


def overhead(plan: Plan) -> str:
    """Return what takes the most time of an update besides compute."""
    assert plan.speed is not None
    others = {part: seconds for part, seconds in plan.speed.seconds_by_part.items() if part != "compute"}
    part = max(others, key=lambda name: others[name])
    return f"{part} {others[part] / plan.speed.update_s:.0%}"


def excess(plan: Plan) -> str:
    """Return the largest part of memory, and by how much a layout exceeds the device."""
    memory = plan.fullest.memory
    most = f"{memory.largest} {dict(memory)[memory.largest] / 1e9:.1f} GB"
    return f"{plan.fullest.name}: {most}, {(memory.total - plan.usable) / 1e9:.1f} GB too much"
