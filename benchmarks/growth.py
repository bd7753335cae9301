"""How step time and memory grow with layers, width, sequence and batch: `python benchmarks/growth.py --out FILE`.

From a small base one size grows at a time; beside what is measured stands what `plan=true` predicts, with the limits of
this machine measured in the same run. benchmarks/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import limits
import side_by_side
import train_steps

BASE = {"layers": 4, "width": 256, "sequence": 128, "batch": 4}
GROWTH = {
    "layers": (2, 4, 8, 16),
    "width": (128, 256, 512, 768),
    "sequence": (64, 128, 256, 512),
    "batch": (2, 4, 8, 16),
}
HEAD_DIM, POSITIONS, VOCABULARY = 64, 1024, 8192
WARMUP_STEPS = 2
GPT2X, MATMUL, PEAK, BANDWIDTH = "gpt2x", "matmul", "peak", "bandwidth"


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "timed steps of each size, after warm-up")
    parser.add_argument("--sizes", nargs="+", choices=GROWTH, default=list(GROWTH), help="what grows")
    parser.add_argument("--dropout", type=float, default=0.0)
    options = side_by_side.parse(parser)
    return options


def case(options: argparse.Namespace, sizes: dict[str, int]) -> argparse.Namespace:
    """Options of `train_steps` for a model and batch of these sizes."""
    shape = [sizes["layers"], sizes["width"] // HEAD_DIM, sizes["width"], POSITIONS, VOCABULARY]
    changed = {"shape": shape, "seq_len": sizes["sequence"], "micro_batch_size": sizes["batch"]}
    return argparse.Namespace(**vars(options) | changed)


def peak(options: argparse.Namespace, folder: Path) -> Callable[[Any], float]:
    """TFLOP/s of the product that a run measures at its start."""
    from gpt2x.runtime.device import measure_peak_tflops, set_up_device

    set_up_device(train_steps.cpu_hardware())
    return lambda _: measure_peak_tflops(seconds=0.3)


def measure(options: argparse.Namespace, sizes: dict[str, int]) -> dict[str, Any]:
    """Steps of one size in its own process, and the rate of matrix products of its shapes in the same minute."""
    chosen = case(options, sizes)
    steps: dict[str, list[dict[str, Any]]] = {GPT2X: [], MATMUL: [], PEAK: []}
    with tempfile.TemporaryDirectory() as folder:
        train_steps.save_weights(chosen, Path(folder))
        with side_by_side.working(__file__, list(steps), chosen, Path(folder)) as workers:
            for index in range(WARMUP_STEPS + options.rounds):
                for worker in side_by_side.in_turn(workers, index):
                    steps[worker.name].append(worker.run(index))
    tokens = sizes["sequence"] * sizes["batch"]
    return {
        "sizes": sizes,
        "seconds_per_step": side_by_side.spread([step["seconds"] for step in steps[GPT2X][WARMUP_STEPS:]]),
        "first_step_s": steps[GPT2X][0]["seconds"],
        "peak_rss_gb": steps[GPT2X][-1]["peak_rss_gb"],
        "peak_tflops": max(step["value"] for step in steps[PEAK]),
        "matmul_gflops": limits.matmul_gflops(chosen.shape, tokens, [step["value"] for step in steps[MATMUL]]),
    }


def predict(options: argparse.Namespace, found: dict[str, Any], bandwidth: float) -> dict[str, float]:
    """The planner's memory and step time by conf/hardware/cpu.yaml and this machine's measured rates."""
    from omegaconf import OmegaConf

    from gpt2x.config import ParallelConfig, TrainerConfig
    from gpt2x.config.options import CONF
    from gpt2x.planner.memory import CPU_PROCESS_BYTES
    from gpt2x.planner.roofline import plan_layout
    from gpt2x.trainable import WholeModel

    sizes = found["sizes"]
    model = replace(train_steps.gpt2x_model(case(options, sizes).shape), dropout=options.dropout)
    hardware = replace(
        train_steps.cpu_hardware(),
        peak_tflops=found["peak_tflops"],
        efficiency=OmegaConf.load(CONF / "hardware" / "cpu.yaml").efficiency,
        memory_gb_per_s=bandwidth,
    )
    trainer = TrainerConfig(
        max_epochs=None, global_batch_size=sizes["batch"], micro_batch_size=sizes["batch"], seq_len=sizes["sequence"]
    )
    planned = plan_layout(WholeModel(model), ParallelConfig(name="single"), hardware, trainer, num_states=2)
    assert planned.speed is not None
    memory_gb = (planned.fullest.memory.total + CPU_PROCESS_BYTES) / 1e9
    return {"seconds_per_step": planned.speed.update_s, "peak_rss_gb": memory_gb}


def compare(options: argparse.Namespace) -> dict[str, Any]:
    measured: dict[tuple[int, ...], dict[str, Any]] = {}  # the base is on every line, and measured once
    lines: dict[str, list[dict[str, Any]]] = {}
    for name in options.sizes:
        lines[name] = []
        for value in GROWTH[name]:
            sizes = BASE | {name: value}
            key = tuple(sizes.values())
            if key not in measured:
                measured[key] = measure(options, sizes)
                seconds = measured[key]["seconds_per_step"]["median"]
                peak = measured[key]["peak_rss_gb"]
                print(f"{name} {value}: {1e3 * seconds:,.0f} ms per step, {peak:.2f} GB", flush=True)
            lines[name].append(measured[key])
    with (
        tempfile.TemporaryDirectory() as folder,
        side_by_side.working(__file__, [BANDWIDTH], case(options, BASE), Path(folder)) as (worker,),
    ):
        kernels = limits.best_bandwidth([worker.run(index)["value"] for index in range(options.rounds)])
    bandwidth = max(kernels.values())
    for found in measured.values():
        found["predicted"] = predict(options, found, bandwidth)
    ratios = {
        key: [found["predicted"][key] / median(found[key]) for found in measured.values()]
        for key in ("seconds_per_step", "peak_rss_gb")
    }
    return {
        "growth": lines,
        "predicted_over_measured_time": statistics.median(ratios["seconds_per_step"]),
        "predicted_over_measured_time_range": [min(ratios["seconds_per_step"]), max(ratios["seconds_per_step"])],
        "predicted_over_measured_memory": statistics.median(ratios["peak_rss_gb"]),
        "predicted_over_measured_memory_range": [min(ratios["peak_rss_gb"]), max(ratios["peak_rss_gb"])],
        "bandwidth_gb_per_s": bandwidth,
        **side_by_side.facts(options),
    }


def median(value: dict[str, float] | float) -> float:
    return value["median"] if isinstance(value, dict) else value


def show(result: dict[str, Any]) -> None:
    columns = ("ms per step", "quartiles", "predicted", "GB at most", "predicted", "matmul GFLOP/s", "peak GFLOP/s")
    for name, line in result["growth"].items():
        rest = ", ".join(f"{key} {value}" for key, value in BASE.items() if key != name)
        rows = []
        for found in line:
            milliseconds = {key: 1e3 * value for key, value in found["seconds_per_step"].items()}
            predicted = found["predicted"]
            rows.append((
                str(found["sizes"][name]), f"{milliseconds['median']:,.0f}", side_by_side.quartiles(milliseconds),
                f"{1e3 * predicted['seconds_per_step']:,.0f}", f"{found['peak_rss_gb']:.2f}",
                f"{predicted['peak_rss_gb']:.2f}", f"{found['matmul_gflops']:.0f}",
                f"{1e3 * found['peak_tflops']:.0f}",
            ))  # fmt: skip
        side_by_side.table(f"{name} grows; {rest}, vocabulary {VOCABULARY}, fp32", (name, *columns), rows)


def draw(result: dict[str, Any], path: Path) -> None:
    """Step time above memory, a column for each size that grows; the prediction dashed."""
    plt = side_by_side.pyplot()
    lines = result["growth"]
    figure, rows = plt.subplots(2, len(lines), figsize=(3 * len(lines), 5.5), layout="constrained", squeeze=False)
    for column, (name, line) in enumerate(lines.items()):
        values = [found["sizes"][name] for found in line]
        for axes, key in zip(rows[:, column], ("seconds_per_step", "peak_rss_gb"), strict=True):
            axes.plot(values, [median(found[key]) for found in line], "o-", color="#2a6f97", label="measured")
            axes.plot(values, [found["predicted"][key] for found in line], "s--", color="#8c8c8c", label="predicted")
            axes.set_xticks(values)
            axes.set_ylim(bottom=0)
            axes.set_xlabel(name)
            axes.spines[["top", "right"]].set_visible(False)
    rows[0, 0].set_ylabel("seconds per step (median)")
    rows[1, 0].set_ylabel("GB, peak of the process")
    rows[0, 0].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    if side_by_side.is_worker():
        contestants = {
            GPT2X: train_steps.gpt2x_step, MATMUL: limits.matmul, PEAK: peak, BANDWIDTH: limits.bandwidth,
        }  # fmt: skip
        side_by_side.serve(contestants, train_steps.batch)
        return
    options = arguments()
    result = compare(options)
    side_by_side.write(result, options.out)
    show(result)
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
