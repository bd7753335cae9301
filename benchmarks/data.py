"""Speed of preparing a corpus, and what training waits for its batches: `python benchmarks/data.py --out FILE`.

benchmarks/README.md says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import side_by_side
import train_steps

SHAPE = (4, 4, 128, 1024, 50257)  # as small as gpt2_tiny with GPT-2's tokenizer: a larger step hides more of the loader
SHARED = side_by_side.ROOT.parent / "shared" / "data"
LOADER = "loader"


def arguments() -> argparse.Namespace:
    parser = side_by_side.parser(__doc__, 5, "preparations of each, and passes of the loader")
    parser.add_argument("--dataset", default="wikitext2", help="option of conf/dataset")
    parser.add_argument("--corpus", type=Path, default=SHARED / "wikitext-2", help="its dataset.path")
    parser.add_argument("--tokenizer", type=Path, default=SHARED / "gpt2-tokenizer", help="its tokenizer.path")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=20, help="steps of a pass")
    options = side_by_side.parse(parser)
    for name in ("corpus", "tokenizer"):
        path = getattr(options, name).absolute()
        if not path.exists():
            parser.error(f"--{name} {path} does not exist")
        setattr(options, name, path)
    options.shape, options.dropout = list(SHAPE), 0.0
    return options


def prepare(options: argparse.Namespace, cores: list[int], cache: Path) -> dict[str, float]:
    """Prepare the corpus on `cores` into an empty cache: by its own account, and as a whole command."""
    command = [
        sys.executable, "-m", "gpt2x", "prepare", f"dataset={options.dataset}", f"dataset.path={options.corpus}",
        f"tokenizer.path={options.tokenizer}", f"seq_len={options.seq_len}",
    ]  # fmt: skip
    log = cache.with_suffix(".log")
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=side_by_side.ROOT, env=os.environ | {"GPT2X_CACHE": str(cache)}, stdout=log.open("w"),
        stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    text = log.read_text(encoding="utf-8")
    rate = re.search(r"^tokens/s\s+([\d,]+)", text, re.MULTILINE)
    parts = re.findall(r": ([\d,]+) tokens in [\d.]+ s", text)
    if process.returncode or not rate or not parts:
        raise SystemExit(f"{' '.join(command[1:])} failed:\n{text[-2000:]}")
    tokens = sum(number(part) for part in parts)
    return {
        "tokens": tokens,
        "tokens_per_s": number(rate.group(1)),
        "command_s": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_rss_gb": usage.ru_maxrss * 1024 / 1e9,
    }


def number(text: str) -> float:
    return float(text.replace(",", ""))


def loader(options: argparse.Namespace, folder: Path):
    """Training steps on the prepared corpus: run(epoch) -> seconds of each wait for a batch and of each step after it,
    and of each wait where nothing is trained.
    """
    from gpt2x.config import DatasetConfig, TokenizerConfig
    from gpt2x.config.options import read_option
    from gpt2x.data.prepare import prepare
    from gpt2x.data.rows.blocks import Blocks
    from gpt2x.data.sampling import batches

    dataset = read_option("dataset", options.dataset, DatasetConfig)
    dataset.path = options.corpus_path
    tokenizer = TokenizerConfig(name="gpt2", path=options.tokenizer_path)
    data = prepare(dataset, tokenizer, Blocks(options.seq_len), cache=folder / "cache")
    step = train_steps.gpt2x_step(options, folder)
    assert data.train is not None
    size = options.micro_batch_size

    def waits(epoch: int, work) -> tuple[list[float], list[float]]:
        source = batches(data.train, batch_size=size, seed=0, epoch=epoch, shuffle=True, drop_last=True)
        waited, worked = [], []
        for _ in range(options.steps):
            start = time.perf_counter()
            batch = next(source)
            got = time.perf_counter()
            work(batch["input_ids"])
            waited.append(got - start)
            worked.append(time.perf_counter() - got)
        source.close()
        return waited, worked

    def run(epoch: int) -> dict[str, list[float]]:
        waited, worked = waits(epoch, step)
        alone, _ = waits(epoch, lambda ids: None)
        return {"waits": waited, "steps": worked, "alone": alone}

    return run


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    choices = {f"{count} core{'s'[: count > 1]}": cores[:count] for count in sorted({1, len(cores)})}
    prepared: dict[str, list[dict[str, float]]] = {name: [] for name in choices}
    for index in range(options.rounds):
        for name, chosen in choices.items():
            with tempfile.TemporaryDirectory() as cache:
                prepared[name].append(prepare(options, chosen, Path(cache) / "cache"))
        rates = [f"{name} {runs[-1]['tokens_per_s']:,.0f} tokens/s" for name, runs in prepared.items()]
        print(f"preparation {index + 1} of {options.rounds}: " + ", ".join(rates), flush=True)
    train_steps.save_weights(options, folder)
    prepare(options, cores, folder / "cache")  # for the loader, which is not what is timed
    passes: dict[int, list[dict[str, list[float]]]] = {}
    for size in options.batch_sizes:
        paths = {"corpus_path": str(options.corpus), "tokenizer_path": str(options.tokenizer)}
        case = argparse.Namespace(**vars(options) | paths | {"micro_batch_size": size})
        with side_by_side.working(__file__, [LOADER], case, folder) as (worker,):
            passes[size] = [worker.run(epoch)["value"] for epoch in range(1 + options.rounds)][1:]  # the first compiles
        print(f"loader at batch {size}: {options.rounds} passes of {options.steps} steps", flush=True)
    return summary(prepared, passes, options)


def summary(
    prepared: dict[str, list[dict[str, float]]],
    passes: dict[int, list[dict[str, list[float]]]],
    options: argparse.Namespace,
) -> dict[str, Any]:
    result: dict[str, Any] = {"preparation": {}, "loader": {}}
    for name, runs in prepared.items():
        result["preparation"][name] = {
            "tokens": runs[0]["tokens"],
            "tokens_per_s": side_by_side.spread([run["tokens_per_s"] for run in runs]),
            "tokens_per_cpu_s": side_by_side.spread([run["tokens"] / run["cpu_s"] for run in runs]),
            "command_s": side_by_side.spread([run["command_s"] for run in runs]),
            "peak_rss_gb": max(run["peak_rss_gb"] for run in runs),
        }
    result["prepare_tokens_per_s_core"] = result["preparation"]["1 core"]["tokens_per_s"]["median"]
    for size, found in passes.items():
        # the first wait of a pass opens the files: it comes once an epoch
        waits = [statistics.median(one["waits"][1:]) for one in found]
        steps = [statistics.median(one["steps"][1:]) for one in found]
        shares = [sum(one["waits"][1:]) / (sum(one["waits"][1:]) + sum(one["steps"][1:])) for one in found]
        alone = [size * options.seq_len / statistics.median(one["alone"][1:]) for one in found]
        result["loader"][str(size)] = {
            "wait_s": side_by_side.spread(waits),
            "first_wait_s": side_by_side.spread([one["waits"][0] for one in found]),
            "step_s": side_by_side.spread(steps),
            "wait_share": side_by_side.spread(shares),
            "tokens_per_s_alone": side_by_side.spread(alone),
        }
    result["loader_wait_share"] = max(found["wait_share"]["median"] for found in result["loader"].values())
    return result | side_by_side.facts(options)


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    rows = [
        (name, f"{found['tokens_per_s']['median']:,.0f}", side_by_side.quartiles(found["tokens_per_s"]),
         f"{found['tokens_per_cpu_s']['median']:,.0f}", f"{found['command_s']['median']:.1f}",
         f"{found['peak_rss_gb']:.2f} GB")
        for name, found in result["preparation"].items()
    ]  # fmt: skip
    columns = ("", "tokens/s", "quartiles", "tokens a CPU second", "s, whole command", "peak memory")
    side_by_side.table(f"Preparation of {settings['dataset']}", columns, rows)
    rows = [
        (f"{size} x {settings['seq_len']}", f"{1e3 * found['wait_s']['median']:.2f}",
         f"{1e3 * found['step_s']['median']:.1f}", f"{found['wait_share']['median']:.2%}",
         f"{1e3 * found['first_wait_s']['median']:.0f}", f"{found['tokens_per_s_alone']['median']:,.0f}")
        for size, found in result["loader"].items()
    ]  # fmt: skip
    columns = ("batch", "wait, ms", "step, ms", "share of wait", "first wait, ms", "tokens/s without training")
    side_by_side.table("What a training step waits for its batch", columns, rows)


def main() -> None:
    if side_by_side.is_worker():
        side_by_side.serve({LOADER: loader}, lambda options, epoch: epoch)
        return
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    side_by_side.write(result, options.out)
    show(result)
    if options.picture:
        shares = {f"batch {size}": scaled(found["wait_share"], 100) for size, found in result["loader"].items()}
        rates = {name: scaled(found["tokens_per_s"], 1e-6) for name, found in result["preparation"].items()}
        panels = [("Preparation, million tokens/s", rates), ("Wait for batches, % of a training step", shares)]
        side_by_side.bars(panels, "as each title says", options.picture)


def scaled(found: dict[str, float], factor: float) -> dict[str, float]:
    return {key: value * factor for key, value in found.items()}


if __name__ == "__main__":
    main()
