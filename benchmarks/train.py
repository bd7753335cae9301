"""Training speed of gpt2x beside others on this machine: `python benchmarks/train.py --out FILE`.

Contestants start from the same weights and see the same batches: their first losses must agree.
benchmarks/README.md says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import limits
import numpy as np
import side_by_side
from train_steps import BF16_CONTESTANTS, CONTESTANTS, batch, gpt2x_model, save_weights

MODELS = {  # layers, heads, hidden, positions, vocabulary
    "tiny": (4, 4, 128, 1024, 2048),
    "4x256": (4, 4, 256, 1024, 50257),
    "small": (12, 12, 768, 1024, 50257),
}
CASES = [("small", 512, 2), ("small", 1024, 1), ("4x256", 512, 2)]  # of --all: model, seq_len, micro batch
WARMUP_STEPS = 3
MATMUL = "matmul"
LOSS_TOLERANCE, BF16_LOSS_TOLERANCE = 1e-4, 2e-3


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 10, "timed steps of each, after warm-up")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.0)
    cases = "; ".join(f"{model} at {rows} x {length}" for model, length, rows in CASES)
    parser.add_argument("--all", action="store_true", help=f"instead of one model: {cases}")
    parser.add_argument("--bf16", action="store_true", help="also in bf16; the processor needs AMX or AVX512-BF16")
    options = side_by_side.parse(parser)
    options.shape = list(MODELS[options.model])
    if not 1 <= options.seq_len <= options.shape[3]:
        parser.error(f"--seq-len {options.seq_len}: the model has {options.shape[3]} positions")
    return options


def contestants(options: argparse.Namespace) -> list[str]:
    """The names of those that take part."""
    return [*CONTESTANTS, *(BF16_CONTESTANTS if options.bf16 else ())]


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Warm up, then step in turn."""
    save_weights(options, folder)
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in [*contestants(options), MATMUL]}
    with side_by_side.working(__file__, list(steps), options, folder) as workers:
        for index in range(WARMUP_STEPS + options.rounds):
            for worker in side_by_side.in_turn(workers, index):
                steps[worker.name].append(worker.run(index))
            print(f"step {index + 1 - WARMUP_STEPS:>3} of {options.rounds}: " + ", ".join(
                f"{name} {steps[name][-1]['seconds']:.2f} s" for name in contestants(options)
            ), flush=True)  # fmt: skip
    check_losses(steps, options)
    return summary(steps, options)


def check_losses(steps: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """The losses of the warm-up steps must agree: the second and third have seen the others' updates."""
    if options.dropout > 0:
        return  # masks differ by design
    mine = [step["value"] for step in steps["gpt2x"][:WARMUP_STEPS]]
    for name in contestants(options):
        losses = [step["value"] for step in steps[name][:WARMUP_STEPS]]
        allowed = BF16_LOSS_TOLERANCE if name in BF16_CONTESTANTS else LOSS_TOLERANCE
        if not np.allclose(losses, mine, rtol=0, atol=allowed):
            raise SystemExit(f"the losses of the first steps differ: gpt2x {mine}, {name} {losses}")


def summary(steps: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> dict[str, Any]:
    from gpt2x.model import stats

    seconds = {name: [step["seconds"] for step in found[WARMUP_STEPS:]] for name, found in steps.items()}
    tokens = options.micro_batch_size * options.seq_len
    limit = limits.matmul_gflops(options.shape, tokens, [step["value"] for step in steps[MATMUL]])
    result: dict[str, Any] = {"contestants": {}}
    peaks = {name: steps[name][-1]["peak_rss_gb"] for name in contestants(options)}
    for name in contestants(options):
        rate = side_by_side.spread([tokens / value for value in seconds[name]])
        gflops = stats.train_flops_per_token(gpt2x_model(options.shape), options.seq_len) * rate["median"] / 1e9
        result["contestants"][name] = {
            "tokens_per_s": rate,
            "seconds_per_step": side_by_side.spread(seconds[name]),
            "first_step_s": steps[name][0]["seconds"],  # with compilation, if there is any
            "peak_rss_gb": peaks[name],
            "gflops": gflops,
            "matmul_share": gflops / limit,
            "first_losses": [step["value"] for step in steps[name][:WARMUP_STEPS]],
        }
        if name != "gpt2x":
            result |= side_by_side.ratio(f"ratio_{name}", seconds[name], seconds["gpt2x"])
            result[f"ratio_peak_memory_{name}"] = peaks[name] / peaks["gpt2x"]
    shares = [
        stats.train_flops_per_token(gpt2x_model(options.shape), options.seq_len) * tokens / value / 1e9 / limit
        for value in seconds["gpt2x"]
    ]
    return result | {
        "matmul_gflops": limit,
        "matmul_share": result["contestants"]["gpt2x"]["matmul_share"],
        "matmul_share_spread": side_by_side.spread(shares),
        **side_by_side.facts(options),
    }


def title(settings: dict[str, Any]) -> str:
    size = f"{settings['micro_batch_size']} x {settings['seq_len']} tokens"
    types = "fp32 and bf16" if settings["bf16"] else "fp32"
    return f"GPT-2 {settings['model']}, {size}, {types}, dropout {settings['dropout']}, {settings['threads']} threads"


def show(result: dict[str, Any]) -> None:
    rows = []
    for name, found in result["contestants"].items():
        rate, memory = found["tokens_per_s"], result.get(f"ratio_peak_memory_{name}")
        rows.append((
            name, f"{rate['median']:,.0f}", side_by_side.quartiles(rate),
            side_by_side.shown_ratio(result, f"ratio_{name}"), f"{found['matmul_share']:.0%}",
            f"{found['peak_rss_gb']:.1f} GB", "" if memory is None else f"{memory:.2f}",
        ))  # fmt: skip
    columns = ("", "tokens/s", "quartiles", "time over gpt2x's", "matmul share", "peak memory", "over gpt2x's")
    side_by_side.table(title(result["settings"]), columns, rows)
    losses = ", ".join(f"{loss:.4f}" for loss in result["contestants"]["gpt2x"]["first_losses"])
    print(f"matmul limit {result['matmul_gflops']:.0f} GFLOP/s at the model's shapes; gpt2x's first losses {losses}")


def main() -> None:
    if side_by_side.is_worker():
        side_by_side.serve(CONTESTANTS | BF16_CONTESTANTS | {MATMUL: limits.matmul}, batch)
        return
    options = arguments()
    cases = CASES if options.all else [(options.model, options.seq_len, options.micro_batch_size)]
    results = []
    for model, seq_len, micro_batch_size in cases:
        changed = {"model": model, "seq_len": seq_len, "micro_batch_size": micro_batch_size, "shape": MODELS[model]}
        case = argparse.Namespace(**vars(options) | changed)
        print(title(side_by_side.settings(case)), flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results.append(compare(case, Path(folder)))
        show(results[-1])
        # after each case: an hour's work is not lost with the last one
        side_by_side.write(results[0] | ({"cases": results} if options.all else {}), options.out)
    if options.picture:
        rates = [{name: c["tokens_per_s"] for name, c in result["contestants"].items()} for result in results]
        titles = [title(result["settings"]) for result in results]
        side_by_side.bars(list(zip(titles, rates, strict=True)), "training tokens/s", options.picture)


if __name__ == "__main__":
    main()
