"""Data-parallel scaling on one machine: tokens/s of `parallel=dpN` over N times those of one process.

    python benchmarks/scaling.py --out scaling.json

Every process has one core and one thread. Runs of one process and of the layout alternate; a round's ratio is of
median step times, the first steps left out. Where the rest goes is measured in the same run: the time of the
collectives without a model (all-reduces of the gradients' size between the same processes), and what a second process
on the other core costs a single one (memory bandwidth, turbo), by two independent single runs side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SKIPPED_STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=int, default=2, help="replicas, at most the cores")
    parser.add_argument("--global-batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", nargs="*", default=["model=gpt2_tiny"], help="overrides that choose the model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < options.data:
        sys.exit(f"--data {options.data} exceeds the {len(cores)} cores of this machine: use fewer")
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(options, cores[: options.data], Path(folder) / str(n)) for n in range(options.rounds)]
    ratios = [r["parallel"] / r["single"] / options.data for r in rounds]
    beside = [r["beside"] / r["single"] for r in rounds]
    found = {
        "settings": {key: str(value) for key, value in vars(options).items()},
        "single_tokens_per_s": statistics.median(r["single"] for r in rounds),
        "parallel_tokens_per_s": statistics.median(r["parallel"] for r in rounds),
        "scaling_efficiency": statistics.median(ratios),
        "scaling_efficiency_range": [min(ratios), max(ratios)],
        "independent_efficiency": statistics.median(beside),
        "rounds": rounds,
    }
    print(f"one process, one core      {found['single_tokens_per_s']:10,.0f} tokens/s")
    print(f"{options.data} processes, one core each{found['parallel_tokens_per_s']:9,.0f} tokens/s")
    print(
        f"efficiency {found['scaling_efficiency']:.3f} of {options.data} x "
        f"({min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds)"
    )
    print(f"of which {options.data} runs that do not communicate reach {found['independent_efficiency']:.3f}")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def measure(options: argparse.Namespace, cores: list[int], folder: Path) -> dict[str, float]:
    """tokens/s of one process, of one beside independent others, and of the layout."""
    single = finish(begin(options, folder / "single", "single", cores[:1]), folder / "single", options)
    names = [f"beside{n}" for n in range(len(cores))]
    # the same share of the batch as a replica has, so that memory traffic is what a replica sees
    processes = [begin(options, folder / name, "single", [core]) for name, core in zip(names, cores, strict=True)]
    beside = statistics.mean(finish(p, folder / n, options) for p, n in zip(processes, names, strict=True))
    name = f"dp{options.data}"
    parallel = finish(begin(options, folder / name, name, cores), folder / name, options)
    return {"single": single, "beside": beside, "parallel": parallel}


def begin(options: argparse.Namespace, folder: Path, layout: str, cores: list[int]) -> subprocess.Popen:
    """Start a training run on `cores`."""
    command = [
        sys.executable, str(ROOT / "train.py"), *options.model, f"parallel={layout}", "tracker=none",
        f"paths.outputs={folder}", f"trainer.max_steps={options.steps}", f"trainer.seq_len={options.seq_len}",
        f"trainer.global_batch_size={options.global_batch_size}", "trainer.eval_every_steps=null",
        "trainer.max_eval_rows=1", "trainer.sample_prompts=[]",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip


def finish(process: subprocess.Popen, folder: Path, options: argparse.Namespace) -> float:
    """Median tokens/s of a run, once it has ended."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed:\n{output[-3000:]}")
    (metrics,) = folder.rglob("metrics.jsonl")
    steps = [json.loads(line) for line in metrics.read_text().splitlines()][SKIPPED_STEPS:]
    seconds = statistics.median(step["perf/step_time_s"] for step in steps)
    return options.global_batch_size * options.seq_len / seconds


if __name__ == "__main__":
    main()
