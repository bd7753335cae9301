"""Write the tables of docs/planning.md and its pictures: `python benchmarks/plan.py`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from benchmarks.public_numbers import composed, own_table, public_table  # noqa: E402
from gpt2x.planner import report as plan_report  # noqa: E402
from gpt2x.planner.roofline import Plan, plan_run  # noqa: E402
from gpt2x.planner.search import SearchResult, search_layouts, tokens_per_s  # noqa: E402

DOCUMENT = ROOT / "docs" / "planning.md"
IMAGES = ROOT / "docs" / "images"
BEGIN, END = "<!-- plans: begin (python benchmarks/plan.py) -->", "<!-- plans: end -->"
B13 = "model=gpt2_13b trainer.seq_len=2048"
B52 = "model=gpt2_52b trainer.seq_len=1024 trainer.global_batch_size=1024 model.attention_dropout=0"
A800, A900 = "hardware=atlas_800t_a2", "hardware=atlas_900_a2_podc"
PLANS = {  # title: overrides
    "13B on 32 devices, as configured": f"{B13} {A800} parallel=dp4_tp8 trainer.global_batch_size=8",
    "13B on 32 devices, flash attention": f"{B13} {A800} parallel=dp4_tp8 trainer.global_batch_size=8 "
    "model.attention_dropout=0",
    "13B on 32 devices, the cluster cabinet": f"{B13} {A900} parallel=dp4_tp8 trainer.global_batch_size=8 "
    "model.attention_dropout=0",
    "13B on 8 devices": f"{B13} {A800} parallel=dp8 trainer.global_batch_size=16 model.attention_dropout=0",
    "13B on 8 devices that split nothing": f"{B13} {A800} parallel=dp8 parallel.zero_stage=0 "
    "parallel.recompute=block trainer.global_batch_size=16 model.attention_dropout=0",
    "52B on 128 devices": f"{B52} {A800} parallel=dp8_pp16",
    "52B on 128 devices, stages as one graph per direction": f"{B52} {A800} parallel=dp8_pp16 parallel.zero_stage=1 "
    "parallel.recompute=block",
    "52B on 128 devices, fully sharded": f"{B52} {A800} parallel=dp8_pp16 parallel.pipeline=1 parallel.data=128 "
    "parallel.optimizer_shards=null parallel.micro_batches=4",
    "52B on 128 devices, the cluster cabinet": f"{B52} {A900} parallel=dp8_pp16",
}
SEARCHES = {
    "13B on 32 devices": f"{B13} {A800} trainer.global_batch_size=8 model.attention_dropout=0 num_devices=32",
    "52B on 128 devices": f"{B52} {A800} num_devices=128",
}
BARS = {  # label: overrides, of the picture of memory
    **{
        f"13B dp8\nzero_stage {stage}": f"{B13} {A800} parallel=dp8 parallel.recompute=block "
        f"parallel.zero_stage={stage} trainer.global_batch_size=16 model.attention_dropout=0"
        for stage in (0, 1, 3)
    },
    "13B tp8": f"{B13} {A800} parallel=tp8 parallel.recompute=block trainer.global_batch_size=2 "
    "model.attention_dropout=0",
    "13B dp4_tp8": PLANS["13B on 32 devices, flash attention"],
    "52B dp8_pp16": PLANS["52B on 128 devices"],
    "52B dp8_pp16\nrecompute none": f"{B52} {A800} parallel=dp8_pp16 parallel.recompute=none parallel.zero_stage=1",
}


def document() -> str:
    """Return the tables, each below its command."""
    parts = ["### Against public numbers", *(table.markdown() for table in (public_table(), own_table()))]
    for title, overrides in PLANS.items():
        config = composed(overrides)
        plan = plan_run(config)
        parts += [f"### {title}", command(overrides, "true")]
        tables = plan_report.plan_tables(plan)
        if "cabinet" in title:  # the same memory and communication
            tables = []
        parts += [table.markdown() for table in tables]
        lines = [*plan_report.verdict(plan), *plan_report.assumptions(config)]
        if plan.speed and not tables:
            lines.append(f"{plan.speed.tokens_per_s:,.0f} tokens/s per device")
        parts.append("```text\n" + "\n".join(lines) + "\n```")
    for title, overrides in SEARCHES.items():
        config = composed(overrides, "search")
        parts += [f"### Search: {title}", command(overrides, "search")]
        parts += [table.markdown() for table in plan_report.search_tables(search_layouts(config), config)]
    return "\n\n".join(parts)


def command(overrides: str, plan: str) -> str:
    return f"```sh\ngpt2x plan {'--search ' if plan == 'search' else ''}{overrides}\n```"


def draw_memory(plans: dict[str, Plan]) -> None:
    """Draw the parts of the fullest rank's memory, with the usable memory as a line."""
    figure, axes = plt.subplots(figsize=(9, 4.5))
    bottom = [0.0] * len(plans)
    ranks = [plan.fullest for plan in plans.values()]
    for part in [name for name, _ in ranks[0].memory]:
        heights = [dict(rank.memory)[part] / 1e9 for rank in ranks]
        axes.bar(list(plans), heights, bottom=bottom, label=part, width=0.6)
        bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
    usable = next(iter(plans.values())).usable / 1e9
    axes.axhline(usable, color="black", linestyle="--", linewidth=1)
    axes.text(3.5, usable + 3, f"usable {usable:.0f} GB", ha="center")
    for index, height in enumerate(bottom):
        axes.text(index, height + 2, f"{height:.0f}", ha="center")
    axes.set_ylabel("GB per device, the fullest rank")
    axes.set_title("Predicted memory of a training step (Atlas 800T A2, fp16)")
    axes.legend(ncols=3)
    save(figure, "plan_memory.png")


def draw_search(title: str, result: SearchResult, name: str) -> None:
    """Draw how the best layouts spend an update; the length of a bar is the time of a token."""
    best = result.fitting[:10]
    figure, axes = plt.subplots(figsize=(9, 4.4))
    labels = [f"{plan.parallel.name}, {plan.micro_batches} x {plan.micro_batch_size}" for plan in best]
    parts = ["compute", "tensor", "pipeline", "data", "embedding", "optimizer", "waiting"]
    left = [0.0] * len(best)
    for part in parts:
        widths = [
            plan.speed.seconds_by_part.get(part, 0.0) / plan.speed.update_s * 1e3 / tokens_per_s(plan)
            if plan.speed
            else 0.0
            for plan in best
        ]
        axes.barh(labels, widths, left=left, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for index, plan in enumerate(best):
        axes.text(left[index], index, f" {tokens_per_s(plan):,.0f} tokens/s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, max(left) * 1.18)
    axes.set_xlabel("milliseconds per token and device")
    axes.set_title(f"{title}: the best layouts that fit, and how the busiest stage spends an update")
    axes.legend(ncols=len(parts), fontsize=8, loc="upper center", bbox_to_anchor=(0.45, -0.14))
    save(figure, name)


def save(figure: plt.Figure, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(IMAGES / name, dpi=110)
    plt.close(figure)


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{document()}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    draw_memory({label: plan_run(composed(overrides)) for label, overrides in BARS.items()})
    for title, overrides in SEARCHES.items():
        draw_search(title, search_layouts(composed(overrides, "search")), f"plan_search_{title.split()[0].lower()}.png")
    print(f"{DOCUMENT.relative_to(ROOT)} and docs/images/plan_*.png written")


if __name__ == "__main__":
    main()
