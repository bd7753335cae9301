"""Compare predicted memory with the peak resident memory of real runs on the CPU, rank by rank.

`python -m tests.planner.test_memory` prints the table of docs/planning.md.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest

from gpt2x.config.layout import Coordinates, world_size
from gpt2x.planner.memory import step_memory
from gpt2x.planner.roofline import Plan, plan_run
from tests.planner.peaks import peaks_gb
from tests.support.configs import typed
from tests.support.small_runs import SMALL

COMMON = ["model.num_layers=4", "model.num_heads=4", "model.max_seq_len=256"]
# the interpreter, MindSpore, and a graph as deep as the run's, with almost no values
SMALLEST = ["model.hidden_size=8", "trainer.seq_len=8", "trainer.global_batch_size=8", "trainer.micro_batch_size=4"]
SIZES = ["model.hidden_size=256", "model.vocab_size=8192", "trainer.seq_len=128"]
WIDE = ["model.hidden_size=768", "model.vocab_size=8192", "trainer.seq_len=128"]
MINDSPORES = [*SIZES, "hardware.native_kernels=false"]
CASES = [  # (layout, dropout, sizes, global batch, micro batch)
    ("single", 0.0, SIZES, 16, 16),
    ("single", 0.0, WIDE, 1, 1),
    ("single", 0.0, WIDE, 2, 1),
    ("single", 0.1, SIZES, 8, 8),
    ("single", 0.0, MINDSPORES, 16, 16),
    ("single", 0.1, MINDSPORES, 8, 8),
    ("tp2", 0.0, SIZES, 16, 16),
    ("tp2", 0.0, WIDE, 2, 2),
    ("pp2", 0.0, SIZES, 32, 16),
    ("pp2", 0.0, WIDE, 2, 1),
    ("zero2", 0.0, SIZES, 32, 16),
    ("zero2", 0.0, WIDE, 2, 1),
    ("dp2_zero3", 0.0, WIDE, 4, 1),
    ("dp2_zero3", 0.0, SIZES, 32, 16),
]
BY_DEFAULT = ("single", 0.0, WIDE, 2, 1)  # two runs of one process
NAMES = {tuple(SIZES): "small", tuple(WIDE): "wide", tuple(MINDSPORES): "small-mindspore"}
IDS = [f"{layout}-{NAMES[tuple(sizes)]}-{batch}x{micro}-{rate}" for layout, rate, sizes, batch, micro in CASES]


def layout_overrides(layout: str, dropout: float) -> list[str]:
    return [f"parallel={layout}", "parallel.micro_batches=null", f"model.dropout={dropout}"]


@cache
def smallest_gb(layout: str, dropout: float, kernels: tuple[str, ...]) -> dict[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        return peaks_gb(Path(folder), *COMMON, *layout_overrides(layout, dropout), *SMALLEST, *kernels)


def predicted_and_measured(layout, dropout, sizes, batch, micro) -> list[tuple[float, float]]:
    """Return (predicted, measured) GB of each rank; measured beyond what the smallest model takes."""
    overrides = [*COMMON, *layout_overrides(layout, dropout), *sizes,
                 f"trainer.global_batch_size={batch}", f"trainer.micro_batch_size={micro}"]  # fmt: skip
    plan = plan_run(typed("train", *SMALL, *overrides))
    with tempfile.TemporaryDirectory() as folder:
        peaks = peaks_gb(Path(folder), *overrides)
    base = smallest_gb(layout, dropout, tuple(sizes[len(SIZES) :]))
    return [(rank_gb(plan, rank), peaks[rank] - base[rank]) for rank in range(world_size(plan.parallel))]


def rank_gb(plan: Plan, rank: int) -> float:
    memory = step_memory(
        plan.trainable,
        Coordinates(plan.parallel, rank),
        plan.hardware,
        num_states=plan.num_states,
        micro_batch_size=plan.micro_batch_size,
        micro_batches=plan.micro_batches,
        seq_len=plan.trainer.seq_len,
    )
    return memory.total / 1e9


@pytest.mark.launch
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[] if case == BY_DEFAULT else pytest.mark.exhaustive)
     for name, case in zip(IDS, CASES, strict=True)],
)  # fmt: skip
def test_predicted_memory_is_that_of_real_runs(case):
    for rank, (predicted, measured) in enumerate(predicted_and_measured(*case)):
        assert predicted == pytest.approx(measured, rel=0.15), f"rank {rank}"


if __name__ == "__main__":
    print("| layout | kernels | hidden | batch, micro batch | dropout | rank | predicted, GB | measured, GB | error |")
    print("|" + "---|" * 9)
    for layout, dropout, sizes, batch, micro in CASES:
        hidden, kernels = sizes[0].split("=")[1], "MindSpore's" if sizes is MINDSPORES else "gpt2x's"
        for rank, (predicted, measured) in enumerate(predicted_and_measured(layout, dropout, sizes, batch, micro)):
            print(
                f"| {layout} | {kernels} | {hidden} | {batch} of {micro} | {dropout:g} | {rank} | {predicted:.2f} "
                f"| {measured:.2f} | {predicted / measured - 1:+.0%} |",
                flush=True,
            )
