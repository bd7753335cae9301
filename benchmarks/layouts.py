"""Full sharding and its neighbours against one process, by real processes: `benchmarks/layouts.py QUESTION --out FILE`.

benchmarks/README.md says what the questions are and how to read the answers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import side_by_side

from gpt2x import checkpoint

STEPS, SAVED = 20, 10  # updates of a run; the checkpoint from which others continue
LOSS, WEIGHTS = 1e-5, 1e-4  # the largest relative differences that count as equal
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "then", "some", "dogs", "ran", "over", "this", "green", "hill")
POLL_S = 0.2

SMALL = ("model=gpt2_tiny", "model.num_layers=4", "model.hidden_size=64", "model.max_seq_len=32", "model.dropout=0",
         "tokenizer.vocab_size=300", "trainer.seq_len=32", "trainer.global_batch_size=16",
         f"trainer.max_steps={STEPS}", f"trainer.checkpoint_every_steps={SAVED}")  # fmt: skip
ALWAYS = ("tracker=none", "dataset=text", "trainer.sample_prompts=[]", "trainer.keep_last=9", "trainer.keep_best=false",
          "hardware.peak_tflops=0.1", "trainer.compile_cache=false", "trainer.eval_every_steps=null",
          "trainer.max_eval_rows=1")  # fmt: skip
ZERO3 = "parallel.zero_stage=3"
FP16 = ("hardware.precision=fp16", "trainer.loss_scale_init=1e12", "trainer.loss_scale_factor=16")


@dataclass(frozen=True)
class Case:
    """A run in a layout, and the overrides of the run of one process that it is compared with."""

    name: str
    layout: tuple[str, ...]
    run: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    group: str = "weights"  # what checkpoints hold of what is trained


CASES = [
    *(Case(f"dp{n}", (f"parallel=dp{n}", ZERO3)) for n in (2, 4, 8)),
    Case("dp2, gathering ahead", ("parallel=dp2", ZERO3, "parallel.gather_ahead=true")),
    Case("dp2_tp2", ("parallel=dp2_tp2", ZERO3)),
    Case("dp2_tp2, sequence parallel", ("parallel=dp2_tp2", ZERO3, "parallel.sequence_parallel=true")),
    Case("dp2_pp2", ("parallel=dp2_pp2", ZERO3)),
    Case("2 x 2 (hybrid)", ("parallel=dp4", ZERO3, "parallel.optimizer_shards=2")),
    Case("dp2, LoRA", ("parallel=dp2", ZERO3), ("lora=r8", "load={base}"), group="adapter"),
    Case("dp2, accumulation", ("parallel=dp2", ZERO3), ("trainer.micro_batch_size=2",)),
    Case("dp2, dropout", ("parallel=dp2", ZERO3), ("model.dropout=0.1",)),
    Case("dp2, frozen tensors", ("parallel=dp2", ZERO3), ("trainer.frozen=[wpe.weight,'mlp.c_fc.*']", "load={base}")),
    Case("dp2, fp16", ("parallel=dp2", ZERO3), FP16),
    # the same micro batches, whose gradients are summed in fp32 on both sides
    Case("dp2, fp16, equal micro batches", ("parallel=dp2", ZERO3, "parallel.reduce_dtype=fp32"),
         (*FP16, "trainer.micro_batch_size=4")),
]  # fmt: skip
SPLITS = [
    *(("single", size) for size in (12, 1, 2, 3, 4)), ("dp2", 6), ("dp2", 1), ("dp4", 3), ("pp2", 3), ("tp2", 3),
    ("zero2", 2), ("dp2_zero3", 2), ("dp2_tp2", 3),
]  # fmt: skip
LEVELS = {
    "single": ("parallel=single",),
    **{f"dp2 {stage}": ("parallel=dp2", f"parallel.zero_stage={stage}") for stage in range(4)},
}


# ---- runs


@dataclass
class Run:
    """A finished run: where it is, and the largest resident memory of each of its processes (GB)."""

    folder: Path
    peaks: list[float] = field(default_factory=list)

    def curve(self) -> list[dict[str, float]]:
        lines = (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def saved(self, step: int) -> checkpoint.Checkpoint:
        return checkpoint.open_checkpoint(self.folder / "checkpoints" / f"step_{step}")


class Runs:
    """Runs of train.py in one folder, each made once."""

    def __init__(self, folder: Path):
        self.folder, self.done = folder, {}
        generator = np.random.default_rng(0)
        lines = [" ".join(WORDS[i] for i in generator.integers(0, len(WORDS), 12)) for _ in range(240)]
        (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")

    def of(self, *overrides: str) -> Run:
        """The run of these overrides."""
        if overrides not in self.done:
            self.done[overrides] = self.train(self.folder / f"run_{len(self.done)}", overrides)
        return self.done[overrides]

    def train(self, folder: Path, overrides: Iterable[str]) -> Run:
        base = (*ALWAYS, f"dataset.path={self.folder}/corpus.txt", f"paths.cache={self.folder}/cache")
        command = [sys.executable, str(side_by_side.ROOT / "train.py"), *base, *overrides, f"hydra.run.dir={folder}"]
        print(" ".join(overrides), file=sys.stderr, flush=True)
        log = self.folder / f"{folder.name}.txt"
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=side_by_side.ROOT)
            peaks: dict[int, float] = {}
            watcher = threading.Thread(target=watch, args=(process, peaks))
            watcher.start()
            try:
                process.wait()
            finally:
                process.terminate()
                watcher.join()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
        return Run(folder, [peaks[rank] for rank in sorted(peaks)])


def watch(launcher: subprocess.Popen, peaks: dict[int, float]) -> None:
    """Write down the largest resident memory of each worker, by rank, until the launcher ends."""
    roles: dict[int, tuple[str, int]] = {}  # of each process: its role and rank
    while launcher.poll() is None:
        with contextlib.suppress(psutil.Error, OSError, StopIteration):  # a process that has just ended
            for child in psutil.Process(launcher.pid).children():
                if child.pid not in roles:
                    variables = child.environ()
                    roles[child.pid] = variables.get("MS_ROLE", "MS_WORKER"), int(variables.get("RANK_ID", 0))
                role, rank = roles[child.pid]
                if role == "MS_WORKER":
                    peaks[rank] = max(peaks.get(rank, 0.0), side_by_side.status_gb("VmHWM", child.pid))
        time.sleep(POLL_S)


# ---- comparisons


def differences(run: Run, alone: Run, group: str = "weights") -> dict[str, float]:
    """The largest relative differences of a run from one of a single process.

    Left out are the losses of skipped updates, which must be the same in both runs, and the biases of keys: attention
    does not depend on them, so that their gradient is only rounding, of which Adam makes whole steps.
    """
    mine, theirs = ({line["step"]: line for line in each.curve()} for each in (run, alone))
    skipped, others = (
        {step for step, line in lines.items() if not isinstance(line["train/grad_norm"], float)}
        for lines in (theirs, mine)
    )
    if mine.keys() != theirs.keys() or skipped != others:
        raise SystemExit(f"{run.folder} has other updates than {alone.folder}")
    losses = [(mine[step]["train/loss"], theirs[step]["train/loss"]) for step in theirs if step not in skipped]
    saved = [each.saved(max(theirs)) for each in (run, alone)]
    squares = []  # of each tensor: of the difference, and of the values
    for name in saved[1].names(group):
        a, b = (without_keys(name, checkpoint.tensor(group, name)) for checkpoint in saved)
        squares.append((float(np.square(a - b).sum()), float(np.square(b).sum())))
    return {
        "loss": max(abs(a / b - 1) for a, b in losses),
        "weights": math.sqrt(sum(each for each, _ in squares) / sum(each for _, each in squares)),
        "tensor": math.sqrt(max(difference / (size or 1.0) for difference, size in squares)),
        "updates": len(theirs),
        "skipped": len(skipped),
    }


def without_keys(name: str, values: np.ndarray) -> np.ndarray:
    """A tensor in fp64; of the bias of queries, keys and values the first and the last third."""
    thirds = np.split(values, 3) if name.endswith("c_attn.bias") else [values] * 3
    return np.stack([thirds[0], thirds[2]]).astype(np.float64)


def training(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """Every case against its run of one process."""
    result = {}
    wanted = [case for case in CASES if not options.only or any(word in case.name for word in options.only)]
    for case in wanted:
        load = [text for text in case.run if "{base}" in text]
        base = str(runs.of(*SMALL, "parallel=single").folder) if load else ""
        overrides = [*SMALL, *(text.replace("{base}", base) for text in case.run)]
        alone, run = runs.of(*overrides, "parallel=single"), runs.of(*overrides, *case.layout)
        result[case.name] = differences(run, alone, case.group)
        print(case.name, result[case.name], flush=True)
    return result


def resuming(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """Every level continued by every level, against a run of one process that never stopped."""
    alone = runs.of(*SMALL, "parallel=single")
    result = {}
    for first, layout in LEVELS.items():
        saved = runs.of(*SMALL, *layout).folder / "checkpoints" / f"step_{SAVED}"
        for second, following in LEVELS.items():
            run = runs.of(*SMALL, *following, f"resume={saved}")
            assert not (run.folder / "checkpoints" / f"step_{SAVED}").exists(), "it trained the first steps itself"
            result[f"{first} by {second}"] = differences(run, alone)
            print(f"{first} by {second}", result[f"{first} by {second}"], flush=True)
    return result


def memory(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """Memory per process of each level beside the plan, compilation and speed, of a model with many layers."""
    from gpt2x.commands.hydra_entry import compose_config
    from gpt2x.planner.memory import CPU_PROCESS_BYTES
    from gpt2x.planner.roofline import plan_run

    model = (
        "model=gpt2_tiny", f"model.num_layers={options.layers}", f"model.hidden_size={options.hidden_size}",
        "model.num_heads=4", f"model.max_seq_len={options.seq_len}", "model.dropout=0", "tokenizer.vocab_size=300",
        f"trainer.seq_len={options.seq_len}", f"trainer.global_batch_size={options.processes}",
        f"trainer.max_steps={options.steps}", "trainer.checkpoint_every_steps=null", "launch.check_memory=false",
    )  # fmt: skip
    parallel = ("parallel=dp8", f"parallel.data={options.processes}")
    result = {}
    for stage in options.levels:
        overrides = (*model, *parallel, f"parallel.zero_stage={stage}")
        vocabulary = "model.vocab_size=300"
        plan = plan_run(compose_config("train", [*overrides, vocabulary, "plan=true"]))
        planned = (plan.fullest.memory.total + CPU_PROCESS_BYTES) / 1e9
        run = runs.of(*overrides)
        curve, peak = run.curve(), max(run.peaks)
        result[f"zero_stage {stage}"] = {
            "peak_gb": peak,
            "planned_gb": planned,
            "planned_over_measured": planned / peak,
            "compile_s": curve[0]["perf/compile_time_s"],
            "step_s": statistics.median(line["perf/step_time_s"] for line in curve[1:]),
            "planned_by_kind_gb": {kind: size / 1e9 for kind, size in plan.fullest.memory},
        }
        print(stage, result[f"zero_stage {stage}"], run.peaks, flush=True)
    return result


def validation(runs: Runs, options: argparse.Namespace) -> dict[str, Any]:
    """val/loss of the same weights, in every split of the work; an update by 1e-30 changes none of their bits."""
    base = runs.of(*SMALL, "parallel=single").folder
    same = (*SMALL, f"load={base}", f"dataset.val_path={runs.folder}/corpus.txt", "trainer.max_steps=1",
            "trainer.global_batch_size=12", "trainer.max_eval_rows=41", "optimizer.learning_rate=1e-30",
            "optimizer.weight_decay=0")  # fmt: skip
    result: dict[str, Any] = {}
    for layout, micro in SPLITS:
        last = runs.of(*same, f"parallel={layout}", f"trainer.micro_batch_size={micro}").curve()[-1]
        first = next(iter(result.values()), last)
        result[f"{layout}, micro batches of {micro}"] = {
            "val/loss": last["val/loss"],
            "difference": abs(last["val/loss"] - first["val/loss"]) / first["val/loss"],
        }
    return result


# ---- answers


def show_differences(title: str, result: dict[str, Any]) -> None:
    rows = [
        (name, f"{each['loss']:.1e}", f"{each['weights']:.1e}", f"{each['tensor']:.1e}", str(each["updates"]),
         str(each["skipped"]), "yes" if each["loss"] <= LOSS and each["weights"] <= WEIGHTS else "NO")
        for name, each in result.items()
    ]  # fmt: skip
    side_by_side.table(title, ("", "loss", "weights", "of one tensor", "updates", "skipped", "equal"), rows)


def show_memory(title: str, result: dict[str, Any]) -> None:
    rows = [
        (name, f"{each['peak_gb']:.2f}", f"{each['planned_gb']:.2f}", f"{each['planned_over_measured']:.2f}",
         f"{each['compile_s']:.0f}", f"{each['step_s']:.2f}")
        for name, each in result.items()
    ]  # fmt: skip
    side_by_side.table(title, ("", "peak, GB", "planned, GB", "ratio", "compilation, s", "step, s"), rows)


def show_validation(title: str, result: dict[str, Any]) -> None:
    rows = [(name, repr(each["val/loss"]), f"{each['difference']:.1e}") for name, each in result.items()]
    side_by_side.table(title, ("", "val/loss", "difference"), rows)


Show = Callable[[str, dict[str, Any]], None]
QUESTIONS: dict[str, tuple[Callable[[Runs, argparse.Namespace], dict[str, Any]], str, Show]] = {
    "training": (training, "Largest relative differences from one process", show_differences),
    "resuming": (resuming, "Continued after 10 of 20 updates: differences from one process", show_differences),
    "validation": (validation, "val/loss of the same weights on 41 rows", show_validation),
    "memory": (memory, "Largest memory of a process", show_memory),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--only", nargs="+", help="of training: cases whose name contains one of these words")
    parser.add_argument("--layers", type=int, default=40, help="of memory; default 40")
    parser.add_argument("--hidden-size", type=int, default=256, help="of memory; default 256")
    parser.add_argument("--seq-len", type=int, default=64, help="of memory; default 64")
    parser.add_argument("--processes", type=int, default=8, help="of memory; default 8")
    parser.add_argument("--steps", type=int, default=4, help="of memory; default 4")
    parser.add_argument("--levels", type=int, nargs="+", default=[0, 1, 2, 3], help="of memory; default 0 1 2 3")
    options = parser.parse_args()
    answer, title, show = QUESTIONS[options.question]
    os.environ.setdefault("GLOG_v", "3")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no run is left
    with tempfile.TemporaryDirectory() as folder:
        result = answer(Runs(Path(folder)), options)
    side_by_side.write({options.question: result, "settings": side_by_side.settings(options)}, options.out)
    show(title, result)


if __name__ == "__main__":
    main()
