"""How long a checkpoint stops training, with and without a thread: `python benchmarks/saving.py --out FILE`.

Trains GPT-2 small twice with the same steps: with trainer.checkpoint_async=false, where training waits for the disk,
and with true. A run reports the stall of each save in the line of the update after it (perf/checkpoint_stall_s).
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
from typing import Any

import side_by_side

STALL, STEP = "perf/checkpoint_stall_s", "perf/step_time_s"
KINDS = {"waiting": "false", "beside": "true"}  # the value of trainer.checkpoint_async


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "saves of each run")
    parser.add_argument("--model", default="gpt2_small", help="an option of conf/model")
    parser.add_argument("--every", type=int, default=12, help="updates between two saves, long enough for one")
    parser.add_argument("--seq-len", type=int, default=64)
    return side_by_side.parse(parser)


def train(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the updates and the saves of a run took, in seconds."""
    steps = options.every * options.rounds + 1
    command = [
        sys.executable, str(side_by_side.ROOT / "train.py"), f"model={options.model}",
        f"trainer.seq_len={options.seq_len}", "trainer.global_batch_size=1", "trainer.micro_batch_size=1",
        f"trainer.max_steps={steps}", f"trainer.checkpoint_every_steps={options.every}", "trainer.keep_last=1",
        "trainer.keep_best=false", "trainer.max_eval_rows=1", "trainer.sample_prompts=[]",
        f"trainer.checkpoint_async={KINDS[kind]}", "tracker=none", "hardware.peak_tflops=1",
        f"paths.outputs={folder}/{kind}", f"paths.cache={folder}/cache",
    ]  # fmt: skip
    threads = str(options.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-1000:]}{done.stderr[-1000:]}")
    (path,) = (folder / kind).rglob("metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    (size,) = {sum(file.stat().st_size for file in step.iterdir()) for step in path.parent.glob("checkpoints/step_*")}
    return {
        "stalls_s": [row[STALL] for row in rows if STALL in row],
        "step_s": statistics.median(row[STEP] for row in rows),
        "interval_s": statistics.median(
            late["time"] - early["time"]
            for early, late in zip(rows[:: options.every], rows[options.every :: options.every], strict=False)
        ),
        "peak_memory_gb": max(row["perf/memory_gb"] for row in rows),
        "checkpoint_gb": size / 1e9,
        "losses": [row["train/loss"] for row in rows],
    }


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(dir=options.out.absolute().parent) as folder:
        runs = {kind: train(kind, options, Path(folder)) for kind in KINDS}
    losses = [run.pop("losses") for run in runs.values()]
    medians = {kind: statistics.median(run["stalls_s"]) for kind, run in runs.items()}
    result = {
        "runs": runs,
        "stall_s": {kind: side_by_side.spread(run["stalls_s"]) for kind, run in runs.items()},
        "ratio_stall": medians["waiting"] / medians["beside"],
        "same_losses": losses[0] == losses[1],
        **side_by_side.facts(options),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [
        (
            kind,
            str(len(run["stalls_s"])),
            f"{medians[kind]:.2f}",
            ", ".join(f"{stall:.2f}" for stall in run["stalls_s"]),
            f"{run['step_s']:.2f}",
            f"{run['interval_s']:.1f}",
            f"{run['peak_memory_gb']:.2f}",
        )
        for kind, run in runs.items()
    ]
    columns = ("training", "saves", "median stall s", "each", "update s", f"{options.every} updates s", "memory GB")
    side_by_side.table(f"Stalls by checkpoints of {runs['beside']['checkpoint_gb']:.2f} GB", columns, rows)
    print(f"ratio {result['ratio_stall']:.1f}; the losses of both runs are the same: {result['same_losses']}")


if __name__ == "__main__":
    main()
