"""Greedy decoding by gpt2x beside others on this machine: `python benchmarks/generate.py --out FILE`.

All decode the same random weights from the same prompts; fp32 texts must agree. benchmarks/README.md says what is
compared and how to read it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import limits
import numpy as np
import side_by_side
from decoders import CONTESTANTS, EXACT, TRANSFORMERS, missing
from train_steps import gpt2x_model, save_weights

SHAPES = {"tiny": (4, 4, 128, 1024, 50257), "small": (12, 12, 768, 1024, 50257)}
TOKENIZER_FILES = ("vocab.json", "merges.txt")
DEFAULT_TOKENIZER = side_by_side.ROOT.parent / "shared" / "data" / "gpt2-tokenizer"
NEAR_TIE = 1e-3  # logits this close may be ordered by rounding; the largest differ by some 0.1 from the next
INITIALIZER_RANGE = 0.05  # with GPT-2's 0.02 random weights repeat one token: texts that agree would prove little
BANDWIDTH = "bandwidth"
BITS = {"": 32, "bf16": 16, "int8": 8, "int4": 4}  # of a weight, by the end of a contestant's name
RATIOS = {"transformers": "ratio_generate", "ctranslate2": "ratio_ctranslate2"}  # others: ratio_NAME


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "timed runs of each workload, after one that is not timed")
    parser.add_argument(
        "--tokenizer", type=Path, default=DEFAULT_TOKENIZER, help="folder with " + ", ".join(TOKENIZER_FILES)
    )
    parser.add_argument("--model", choices=SHAPES, default="small")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--prefill-tokens", type=int, default=512, help="prompt of the workload with one new token")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--contestants", nargs="+", choices=CONTESTANTS, help="all by default; gpt2x and transformers always take part"
    )
    options = side_by_side.parse(parser)
    for name in TOKENIZER_FILES:
        if not (options.tokenizer / name).is_file():
            parser.error(f"--tokenizer {options.tokenizer} has no {name}: give GPT-2's tokenizer")
    options.shape, options.dropout = list(SHAPES[options.model]), 0.0
    options.initializer_range = INITIALIZER_RANGE
    skipped = {name: f"needs {' and '.join(packages)} (pip install)" for name, packages in missing().items()}
    if options.isa:
        reason = f"is compiled for this processor and not for {options.isa}"
        skipped |= {name: reason for name in CONTESTANTS if name.startswith("llama")}
    for name, reason in skipped.items():
        print(f"skipped: {name}, which {reason}", file=sys.stderr)
    chosen = {"gpt2x", TRANSFORMERS, *(options.contestants or CONTESTANTS)} - skipped.keys()
    options.contestants = [name for name in CONTESTANTS if name in chosen]
    if max(options.prompt_tokens + options.new_tokens, options.prefill_tokens + 1) > options.shape[3]:
        parser.error(f"prompt and new tokens exceed the model's {options.shape[3]} positions")
    return options


def workloads(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """By the end of their ratios' names."""
    found = {
        f"batch{size}": {"batch": size, "prompt": options.prompt_tokens, "new": options.new_tokens}
        for size in options.batch_sizes
    }
    return found | {"prefill": {"batch": 1, "prompt": options.prefill_tokens, "new": 1}}


def prompts(options: argparse.Namespace, request: dict[str, Any]) -> tuple[list[list[int]], int]:
    """Random tokens, the same for every contestant, and how many to add: 0 where the logits of texts are asked for."""
    if request is None:
        return [], 0
    if "texts" in request:
        return request["texts"], 0
    shape = (request["batch"], request["prompt"])
    return np.random.default_rng(0).integers(0, options.shape[-1] - 1, shape).tolist(), request["new"]


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Each workload once untimed, then `rounds` times in turn."""
    save_weights(options, folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(options.tokenizer / name, folder / name)
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    bandwidths: dict[str, list[dict[str, float]]] = {}  # by workload, of each round
    with side_by_side.working(__file__, [*options.contestants, BANDWIDTH], options, folder) as workers:
        *decoding, reading = workers
        for label, request in workloads(options).items():
            found = runs[label] = {worker.name: [] for worker in decoding}
            for index in range(1 + options.rounds):
                for worker in side_by_side.in_turn(decoding, index):
                    found[worker.name].append(worker.run(request))
                bandwidths.setdefault(label, []).append(reading.run(None)["value"])
                print(f"{label}, run {index} of {options.rounds}: " + ", ".join(
                    f"{name} {all_runs[-1]['seconds']:.2f} s" for name, all_runs in found.items()
                ), flush=True)  # fmt: skip
        reference = next(worker for worker in decoding if worker.name == TRANSFORMERS)
        agreement = {
            label: check_texts(prompts(options, request)[0], request["new"], runs[label], reference)
            for label, request in workloads(options).items()
        }
    return summary(runs, agreement, bandwidths, options)


def check_texts(
    given: list[list[int]], new: int, runs: dict[str, list[dict[str, Any]]], reference: side_by_side.Worker
) -> dict[str, Any]:
    """Shares of tokens that agree with transformers'; an fp32 contestant may only leave its text at a near tie.

    Behind the first difference texts are different ones, so nothing is compared there.
    """
    texts = {name: found[0]["value"] for name, found in runs.items()}
    for name, found in runs.items():
        lengths = {len(row) for run in found for row in run["value"]}
        if lengths != {new}:
            raise SystemExit(f"{name} made {sorted(lengths)} tokens instead of {new}: speeds would not compare")
    agreement: dict[str, Any] = {}
    for name in runs:
        pairs = list(zip(given, texts[name], texts[TRANSFORMERS], strict=True))
        first = [next((i for i in range(new) if mine[i] != theirs[i]), new) for _, mine, theirs in pairs]
        agreement[name] = {
            "agreeing": sum(first) / (new * len(first)),
            "distinct_tokens": len({token for row in texts[name] for token in row}),  # agreeing on few proves little
            "near_ties": [],
        }
        if name not in EXACT:
            continue
        for (prompt, mine, theirs), place in zip(pairs, first, strict=True):
            if place < new:
                logits = reference.run({"texts": [prompt + theirs[:place]]})["value"][0]
                gap = abs(logits[mine[place]] - logits[theirs[place]])
                if gap > NEAR_TIE:
                    raise SystemExit(
                        f"{name} chose token {mine[place]} as number {place + 1} of {new}, transformers "
                        f"{theirs[place]}, whose logits differ by {gap:.2g}: they do not decode the same model"
                    )
                agreement[name]["near_ties"].append({"token": place + 1, "gap": gap})
    return agreement


def summary(
    runs: dict[str, dict[str, list[dict[str, Any]]]],
    agreement: dict[str, Any],
    bandwidths: dict[str, list[dict[str, float]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    all_rounds = limits.best_bandwidth([each for found in bandwidths.values() for each in found])
    result: dict[str, Any] = {"workloads": {}}
    for label, request in workloads(options).items():
        seconds = {name: [run["seconds"] for run in found[1:]] for name, found in runs[label].items()}
        passes = request["new"]  # each reads all weights once: that of the prompt like those after it
        tokens = request["batch"] * (request["prompt"] if label == "prefill" else request["new"])
        contestants = {}
        limit = [max(each.values()) for each in bandwidths[label][1:]]  # of each round
        for name, found in seconds.items():
            kind = name.partition("_")[2]
            read = weight_gb(options, kind) * passes
            shares = [read / each / most for each, most in zip(found, limit, strict=True)]
            contestants[name] = {
                "tokens_per_s": side_by_side.spread([tokens / each for each in found]),
                "seconds": side_by_side.spread(found),
                "first_run_s": runs[label][name][0]["seconds"],
                "peak_rss_gb": runs[label][name][-1]["peak_rss_gb"],
                **({"bandwidth_share": statistics.median(shares)} if label != "prefill" else {}),
                **agreement[label][name],
            }
            ours = f"gpt2x_{kind}" if kind else "gpt2x"
            if name != ours and ours in seconds:
                stem = RATIOS.get(name, f"ratio_{name}")
                key = "ratio_prefill" if (name, label) == (TRANSFORMERS, "prefill") else f"{stem}_{label}"
                result |= side_by_side.ratio(key, found, seconds[ours])
                contestants[name]["ratio"] = key
            elif label != "prefill":
                key = "bandwidth_share" + name.removeprefix("gpt2x") + ("" if request["batch"] == 1 else f"_{label}")
                result |= {key: statistics.median(shares), f"{key}_spread": side_by_side.spread(shares)}
        result["workloads"][label] = {**request, "contestants": contestants}
    return result | {
        "bandwidth_gb_per_s": max(all_rounds.values()),
        "bandwidth_spread": side_by_side.spread(
            [max(each.values()) for found in bandwidths.values() for each in found]
        ),
        "bandwidth_kernels": all_rounds,
        "weights_read_gb": weight_gb(options, ""),
        **side_by_side.facts(options),
    }


def weight_gb(options: argparse.Namespace, kind: str) -> float:
    """GB that a forward pass reads with weights of a kind ("" for fp32): all of the blocks, the last norm and the tied
    head; of the position embedding a row, which is nothing. Scales are left out.
    """
    from gpt2x.model import stats

    model = gpt2x_model(options.shape)
    return BITS[kind] / 8 * (stats.num_params(model) - model.max_seq_len * model.hidden_size) / 1e9


def title(result: dict[str, Any], label: str) -> str:
    settings, work = result["settings"], result["workloads"][label]
    what = f"batch {work['batch']}, {work['prompt']} tokens and {work['new']} new"
    return f"GPT-2 {settings['model']}, {what}, greedy, {settings['threads']} threads"


def show(result: dict[str, Any]) -> None:
    columns = (
        "",
        "tokens/s",
        "quartiles",
        "time over gpt2x's in its format",
        "bandwidth share",
        "same tokens",
        "peak memory",
    )
    for label, work in result["workloads"].items():
        rows = []
        for name, found in work["contestants"].items():
            rate, share = found["tokens_per_s"], found.get("bandwidth_share")
            rows.append((
                name, f"{rate['median']:,.1f}", side_by_side.quartiles(rate, 1),
                side_by_side.shown_ratio(result, found.get("ratio", "")), "" if share is None else f"{share:.0%}",
                f"{found['agreeing']:.1%}", f"{found['peak_rss_gb']:.1f} GB",
            ))  # fmt: skip
        side_by_side.table(title(result, label), columns, rows)
    reached = result["bandwidth_spread"]["median"]
    print(f"memory is read at {reached:.1f} GB/s, at best {result['bandwidth_gb_per_s']:.1f}; "
          f"a token reads {result['weights_read_gb']:.2f} GB of fp32 weights")  # fmt: skip


def main() -> None:
    if side_by_side.is_worker():
        side_by_side.serve(CONTESTANTS | {BANDWIDTH: limits.bandwidth}, prompts)
        return
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    side_by_side.write(result, options.out)
    show(result)
    if options.picture:
        panels = [
            (title(result, label), {name: found["tokens_per_s"] for name, found in work["contestants"].items()})
            for label, work in result["workloads"].items()
        ]
        side_by_side.bars(panels, "tokens/s, those of the prompt in the last panel", options.picture)


if __name__ == "__main__":
    main()
