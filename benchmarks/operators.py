"""Where a training step's time goes, by operator: `python benchmarks/operators.py --out FOLDER`.

A table here and in FOLDER/operators.csv, and MindSpore's trace of every operator of three steps, FOLDER/trace.json,
which https://ui.perfetto.dev and chrome://tracing open.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

from train_steps import batch, gpt2x_step, save_weights

WARMUP, STEPS = 3, 3


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--shape", type=int, nargs=5, default=[12, 12, 768, 1024, 50257], metavar="N",
                        help="layers, heads, hidden size, positions, vocabulary; default GPT-2 small")  # fmt: skip
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    return parser.parse_args()


def summary(detail: Path) -> list[tuple[str, float, float]]:
    """(operator, calls per step, ms per step), the longest first; the layers of a model are one."""
    calls, times = defaultdict(float), defaultdict(float)
    with detail.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = re.sub(r"\d+", "#", row["full_op_name"].removeprefix("Default/"))
            name = re.sub(r"^gradients-Gradients/|loss-WeightedLoss/|net-GPT#/|h-CellList/#-", "", name)
            calls[name] += int(row["op_occurrences"]) / STEPS
            times[name] += float(row["op_total_time(ms)"]) / STEPS
    return sorted(((name, calls[name], time) for name, time in times.items()), key=lambda row: -row[2])


def main() -> None:
    options = arguments()
    from mindspore.profiler import ProfilerActivity, profile, tensorboard_trace_handler
    from rich.console import Console
    from rich.table import Table

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save_weights(options, Path(folder))
        step = gpt2x_step(options, Path(folder), options.precision)
        for index in range(WARMUP):
            step(batch(options, index))
        handler = tensorboard_trace_handler(folder)
        with profile(activities=[ProfilerActivity.CPU], on_trace_ready=handler) as profiler:
            for index in range(STEPS):
                step(batch(options, WARMUP + index))
                profiler.step()
        (detail,), (trace,) = (
            list(Path(folder).rglob(name)) for name in ("cpu_op_detail_info_*.csv", "trace_view.json")
        )
        rows = summary(detail)
        shutil.copyfile(trace, options.out / "trace.json")
    total = sum(time for _, _, time in rows)
    with (options.out / "operators.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("operator", "calls_per_step", "ms_per_step"), *rows])
    table = Table(
        title=f"GPT-2 {options.shape}, {options.micro_batch_size} x {options.seq_len}: {total:,.0f} ms per step"
    )
    for column in ("operator", "calls", "ms", "share"):
        table.add_column(column, justify="left" if column == "operator" else "right", no_wrap=True)
    for name, calls, time in rows[:20]:
        table.add_row(name[-72:], f"{calls:.0f}", f"{time:,.1f}", f"{time / total:.1%}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
