"""Peak memory of training GPT-2 and of loading a checkpoint, beside transformers: `benchmarks/memory.py --out FILE`.

Every run has its own process, one after the other. benchmarks/README.md says how to read it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import side_by_side
import train_steps
from side_by_side import peak_rss_gb, reset_peak, rss_gb

SHAPES = {"tiny": (4, 4, 128, 1024, 2048), "small": (12, 12, 768, 1024, 50257)}
STEPS = 3
CHECKPOINT = "gpt2x_checkpoint"  # folder of the same weights in gpt2x's own format


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "processes of each")
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    options = side_by_side.parse(parser)
    options.shape = list(SHAPES[options.model])
    return options


def recomputing(options: argparse.Namespace, folder: Path, recompute: str):
    """gpt2x's training step with activations computed again in backward."""
    return train_steps.gpt2x_step(argparse.Namespace(**vars(options) | {"recompute": recompute}), folder)


def gpt2x_load(options: argparse.Namespace, folder: Path, name: str = ""):
    """From files to a model that can run, as `evaluate.py` does; `name` is a folder within folder."""
    from gpt2x.convert import load_source
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.runtime.device import set_up_device

    hardware = train_steps.cpu_hardware()
    set_up_device(hardware)

    def load():
        source = load_source(str(folder / name))
        net = GPT2(source.model, hardware)
        load_weights(net, source.weights())
        return net

    return measured(load)


def transformers_load(options: argparse.Namespace, folder: Path):
    """`from_pretrained`."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(options.threads)
    return measured(lambda: GPT2LMHeadModel.from_pretrained(folder))


def measured(load):
    """A run of `load`: GB before it, the most during it, and those that stay; what libraries take is before it."""

    def run(_: Any) -> dict[str, float]:
        reset_peak()
        before = rss_gb()
        loaded = load()
        found = {"before_gb": before, "peak_gb": peak_rss_gb(), "after_gb": rss_gb()}
        del loaded
        return found

    return run


TRAINING = {
    "gpt2x": train_steps.gpt2x_step,
    "gpt2x_recompute_attention": partial(recomputing, recompute="attention"),
    "gpt2x_recompute_block": partial(recomputing, recompute="block"),
    "pytorch_eager": train_steps.CONTESTANTS["pytorch_eager"],
    "torch_compile": train_steps.CONTESTANTS["torch_compile"],
}
LOADING = {
    "gpt2x": gpt2x_load,
    "gpt2x_own_format": partial(gpt2x_load, name=CHECKPOINT),
    "transformers": transformers_load,
}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    train_steps.save_weights(options, folder)
    convert = [
        sys.executable,
        "-m",
        "gpt2x",
        "convert",
        "--to",
        "gpt2x",
        "--output",
        str(folder / CHECKPOINT),
        str(folder),
    ]
    done = subprocess.run(convert, cwd=side_by_side.ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(convert[1:])} failed:\n{done.stderr[-2000:]}")
    training: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINING}
    loading: dict[str, list[dict[str, float]]] = {name: [] for name in LOADING}
    for index in range(options.rounds):
        for name in TRAINING:
            with side_by_side.working(__file__, [f"train:{name}"], options, folder) as (worker,):
                training[name].append([worker.run(step) for step in range(STEPS)][-1])
        for name in LOADING:
            with side_by_side.working(__file__, [f"load:{name}"], options, folder) as (worker,):
                loading[name].append(worker.run(0)["value"])
        peaks = [f"{name} {runs[-1]['peak_rss_gb']:.2f} GB" for name, runs in training.items()]
        print(f"round {index + 1} of {options.rounds}: " + ", ".join(peaks), flush=True)
    return summary(training, loading, (folder / "model.safetensors").stat().st_size / 1e9, options)


def summary(
    training: dict[str, list[dict[str, Any]]],
    loading: dict[str, list[dict[str, float]]],
    weights_gb: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    peaks = {name: [run["peak_rss_gb"] for run in runs] for name, runs in training.items()}
    growth = {name: [run["peak_gb"] - run["before_gb"] for run in runs] for name, runs in loading.items()}
    result: dict[str, Any] = {
        "training": {
            name: {
                "peak_rss_gb": side_by_side.spread(peaks[name]),
                "last_step_s": statistics.median(run["seconds"] for run in runs),
                "last_loss": runs[0]["value"],
            }
            for name, runs in training.items()
        },
        "loading": {
            name: {
                "increase_gb": side_by_side.spread(growth[name]),
                "increase_over_weights": statistics.median(growth[name]) / weights_gb,
                "before_gb": statistics.median(run["before_gb"] for run in runs),
                "after_gb": statistics.median(run["after_gb"] for run in runs),
            }
            for name, runs in loading.items()
        },
        "weights_gb": weights_gb,
    }
    for name in TRAINING:
        if name != "gpt2x":
            result |= side_by_side.ratio(f"ratio_peak_memory_{name}", peaks[name], peaks["gpt2x"])
    result |= side_by_side.ratio("ratio_load_memory", growth["transformers"], growth["gpt2x"])
    result["load_peak_over_weights"] = result["loading"]["gpt2x"]["increase_over_weights"]
    return result | side_by_side.facts(options)


def titles(result: dict[str, Any]) -> tuple[str, str]:
    settings = result["settings"]
    size = f"{settings['micro_batch_size']} x {settings['seq_len']} tokens"
    return f"Training GPT-2 {settings['model']}, {size}, fp32", f"Loading its {result['weights_gb']:.2f} GB of weights"


def show(result: dict[str, Any]) -> None:
    training, loading = titles(result)
    rows = [
        (name, f"{found['peak_rss_gb']['median']:.2f} GB", side_by_side.quartiles(found["peak_rss_gb"], 2),
         side_by_side.shown_ratio(result, f"ratio_peak_memory_{name}"), f"{found['last_step_s']:.2f}")
        for name, found in result["training"].items()
    ]  # fmt: skip
    side_by_side.table(training, ("", "peak memory", "quartiles", "over gpt2x's", "s a step"), rows)
    rows = [
        (name, f"{found['increase_gb']['median']:.2f} GB", f"{found['increase_over_weights']:.2f}",
         f"{found['before_gb']:.2f} GB", f"{found['after_gb']:.2f} GB")
        for name, found in result["loading"].items()
    ]  # fmt: skip
    side_by_side.table(loading, ("", "peak above before", "of the weights", "before", "after"), rows)


def main() -> None:
    if side_by_side.is_worker():
        training = {f"train:{name}": found for name, found in TRAINING.items()}
        loading = {f"load:{name}": found for name, found in LOADING.items()}
        side_by_side.serve(training | loading, train_steps.batch)
        return
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    side_by_side.write(result, options.out)
    show(result)
    if options.picture:
        panels = [{name: found["peak_rss_gb"] for name, found in result["training"].items()}]
        panels.append({name: found["increase_gb"] for name, found in result["loading"].items()})
        side_by_side.bars(list(zip(titles(result), panels, strict=True)), "GB of resident memory", options.picture)


if __name__ == "__main__":
    main()
