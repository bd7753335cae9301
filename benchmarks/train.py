"""Training speed of gpt2x beside others on this machine: `python benchmarks/train.py --out FILE`.

Each contestant is a process that stays alive; the parent has them step in turn, so that whatever else the machine
does hits all alike. They start from the same weights and see the same batches: their first losses must agree.
benchmarks/README.md says what is compared and how to read it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

MODELS = {"tiny": (4, 4, 128, 1024, 2048), "small": (12, 12, 768, 1024, 50257)}  # layers, heads, hidden, positions, V
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY, GRAD_CLIP = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
WARMUP_STEPS, MATMUL_SIZE, NUM_MATMULS = 3, 2048, 10


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--picture", type=Path, help="PNG file to write")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--micro-batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each, after warm-up (at least 5)")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds must be at least 5")
    return options


def batch(options: argparse.Namespace, step: int) -> np.ndarray:
    """Token ids (B, T + 1) of a step, the same for every contestant."""
    shape = (options.micro_batch_size, options.seq_len + 1)
    return np.random.default_rng(step).integers(0, MODELS[options.model][-1], shape).astype(np.int32)


def hf_config(options: argparse.Namespace):
    from transformers import GPT2Config

    layers, heads, hidden, positions, vocab = MODELS[options.model]
    return GPT2Config(
        n_layer=layers, n_head=heads, n_embd=hidden, n_positions=positions, vocab_size=vocab,
        embd_pdrop=options.dropout, attn_pdrop=options.dropout, resid_pdrop=options.dropout,
    )  # fmt: skip


def save_weights(options: argparse.Namespace, folder: Path) -> None:
    """Random weights by transformers, as a Hugging Face directory."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(hf_config(options)).save_pretrained(folder)


# Contestants: given options and the folder of the weights, each builds its model and returns `step(ids) -> loss`.
# They run in a process of their own and import nothing of one another.


def gpt2x_step(options: argparse.Namespace, folder: Path):
    """The jitted update of `train.py`."""
    import mindspore as ms
    from mindspore import Tensor

    from gpt2x.config import HardwareConfig, OptimizerConfig
    from gpt2x.convert import load_source
    from gpt2x.model.gpt2 import GPT2, load_weights
    from gpt2x.optim.adamw import AdamW
    from gpt2x.runtime.device import set_up_device
    from gpt2x.tasks.language_modeling import WeightedLoss
    from gpt2x.train.step import TrainStep

    hardware = HardwareConfig(name="cpu", device_target="CPU", precision="fp32", memory_gb=None, peak_tflops=None,
                              devices_per_node=1, flash_attention=False, source="")  # fmt: skip
    set_up_device(hardware)
    source = load_source(str(folder))
    net = GPT2(source.model, hardware)
    load_weights(net, source.weights())
    optimizer = AdamW(
        OptimizerConfig(name="adamw", learning_rate=LEARNING_RATE, beta1=BETAS[0], beta2=BETAS[1], eps=EPS,
                        weight_decay=WEIGHT_DECAY),
        net.trainable_params(),
    )  # fmt: skip
    update = TrainStep(
        WeightedLoss(net), net.trainable_params(), optimizer, 1, GRAD_CLIP, has_dropout=options.dropout > 0
    )
    weights = np.full((1, options.micro_batch_size, options.seq_len), 1.0, np.float32)
    weights, scale, count = weights / weights.size, Tensor(1.0, ms.float32), 0

    def step(ids: np.ndarray) -> float:
        nonlocal count
        count += 1
        key = Tensor(count, ms.int32)
        return update(ids[None], weights, key, scale, *optimizer.scalars(LEARNING_RATE, count))[0]

    return step


def pytorch_eager_step(options: argparse.Namespace, folder: Path):
    """transformers' GPT2LMHeadModel with its default attention, and PyTorch's AdamW (fused) and clipping."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_num_threads(options.threads)
    model = GPT2LMHeadModel.from_pretrained(folder, config=hf_config(options)).train()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS, fused=True)

    def step(ids: np.ndarray) -> float:
        ids = torch.from_numpy(ids.astype(np.int64))
        logits = model(ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss)

    return step


def matmul_step(options: argparse.Namespace, folder: Path):
    """Not a contestant but the limit: square fp32 products by PyTorch, the faster of the two libraries at them here."""
    import torch

    torch.set_num_threads(options.threads)
    a = torch.ones(MATMUL_SIZE, MATMUL_SIZE)

    def step(ids: np.ndarray) -> float:
        for _ in range(NUM_MATMULS):
            product = a @ a
        return float(product[0, 0])

    return step


CONTESTANTS = {"gpt2x": gpt2x_step, "pytorch_eager": pytorch_eager_step}
MATMUL = "matmul"


def serve(name: str, options: argparse.Namespace, folder: Path) -> None:
    """A worker: a step for each line on stdin, answered by a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    step = (CONTESTANTS | {MATMUL: matmul_step})[name](options, folder)
    for line in sys.stdin:
        ids = batch(options, int(line))
        start = time.perf_counter()
        loss = step(ids)
        seconds = time.perf_counter() - start
        peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"loss": loss, "seconds": seconds, "peak_rss_gb": peak_gb}), file=answers, flush=True)


class Worker:
    """A contestant's process; stopped while it is not its turn, since idle thread pools spin."""

    def __init__(self, name: str, options: argparse.Namespace, folder: Path):
        threads = str(options.threads)
        settings = {key: value for key, value in vars(options).items() if key not in ("out", "picture")}
        request = json.dumps({"name": name, "options": settings, "folder": str(folder)})
        self.name, self.log = name, folder / f"{name}.log"
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", request], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.log.open("w"), text=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
        )  # fmt: skip

    def step(self, index: int) -> dict[str, float]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        answer = ""
        self.process.send_signal(signal.SIGCONT)
        try:
            self.process.stdin.write(f"{index}\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(answer)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.send_signal(signal.SIGCONT)
        self.process.wait()


def spread(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "quartile_1": low, "quartile_3": high}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Warm up, then step in turn; the order within a round alternates."""
    save_weights(options, folder)
    workers = [Worker(name, options, folder) for name in [*CONTESTANTS, MATMUL]]
    steps: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in workers}
    for index in range(WARMUP_STEPS + options.rounds):
        for worker in workers if index % 2 == 0 else workers[::-1]:
            steps[worker.name].append(worker.step(index))
        print(f"step {index + 1 - WARMUP_STEPS:>3} of {options.rounds}: " + ", ".join(
            f"{name} {found[-1]['seconds']:.2f} s" for name, found in steps.items() if name != MATMUL
        ), flush=True)  # fmt: skip
    for worker in workers:
        worker.close()
    check_losses(steps, options)
    return summary(steps, options)


def check_losses(steps: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    """The losses of the warm-up steps must agree: the second and third have seen the others' updates."""
    if options.dropout > 0:
        return  # masks differ by design
    mine = [step["loss"] for step in steps["gpt2x"][:WARMUP_STEPS]]
    for name in CONTESTANTS:
        losses = [step["loss"] for step in steps[name][:WARMUP_STEPS]]
        if not np.allclose(losses, mine, rtol=0, atol=1e-4):
            raise SystemExit(f"the losses of the first steps differ: gpt2x {mine}, {name} {losses}")


def summary(steps: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> dict[str, object]:
    from gpt2x.config import ModelConfig
    from gpt2x.model import stats

    layers, heads, hidden, positions, vocab = MODELS[options.model]
    model = ModelConfig(name=options.model, num_layers=layers, num_heads=heads, hidden_size=hidden,
                        max_seq_len=positions, vocab_size=vocab)  # fmt: skip
    seconds = {name: [step["seconds"] for step in found[WARMUP_STEPS:]] for name, found in steps.items()}
    tokens = options.micro_batch_size * options.seq_len
    limit = NUM_MATMULS * 2 * MATMUL_SIZE**3 / min(seconds[MATMUL]) / 1e9
    result: dict[str, object] = {"contestants": {}}
    for name in CONTESTANTS:
        rates = [tokens / value for value in seconds[name]]
        gflops = stats.train_flops_per_token(model, options.seq_len) * statistics.median(rates) / 1e9
        result["contestants"][name] = {
            "tokens_per_s": spread(rates),
            "seconds_per_step": spread(seconds[name]),
            "peak_rss_gb": steps[name][-1]["peak_rss_gb"],
            "gflops": gflops,
            "matmul_share": gflops / limit,
            "first_losses": [step["loss"] for step in steps[name][:WARMUP_STEPS]],
        }
        ratios = [other / mine for other, mine in zip(seconds[name], seconds["gpt2x"], strict=True)]
        if name != "gpt2x":
            result[f"ratio_{name}"] = spread(ratios)["median"]
            result[f"ratio_{name}_spread"] = spread(ratios)
    return result | {
        "matmul_gflops": limit,
        "matmul_share": result["contestants"]["gpt2x"]["matmul_share"],
        "settings": {key: value for key, value in vars(options).items() if key not in ("out", "picture")},
        "machine": {"processor": processor(), "cpus": os.cpu_count(), "system": platform.platform()},
        "versions": {name: version(name) for name in ("gpt2x", "mindspore", "torch", "transformers", "numpy")},
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def title(settings: dict) -> str:
    size = f"{settings['micro_batch_size']} x {settings['seq_len']} tokens"
    return f"GPT-2 {settings['model']}, {size}, fp32, dropout {settings['dropout']}, {settings['threads']} threads"


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    settings = result["settings"]
    table = Table(title=title(settings))
    for column in ("", "tokens/s", "quartiles", "gpt2x over it", "matmul share", "peak memory"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, found in result["contestants"].items():
        rate = found["tokens_per_s"]
        ratio = result.get(f"ratio_{name}_spread")
        table.add_row(
            name, f"{rate['median']:,.0f}", f"{rate['quartile_1']:,.0f} to {rate['quartile_3']:,.0f}",
            f"{ratio['median']:.2f} ({ratio['quartile_1']:.2f} to {ratio['quartile_3']:.2f})" if ratio else "",
            f"{found['matmul_share']:.0%}", f"{found['peak_rss_gb']:.1f} GB",
        )  # fmt: skip
    losses = ", ".join(f"{loss:.4f}" for loss in result["contestants"]["gpt2x"]["first_losses"])
    console = Console(width=100)
    console.print(table)
    console.print(f"matmul limit {result['matmul_gflops']:.0f} GFLOP/s; gpt2x's first losses {losses}")


def draw(result: dict, path: Path) -> None:
    """Bars of tokens/s with their quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(result["contestants"])
    rates = [result["contestants"][name]["tokens_per_s"] for name in names]
    medians = [rate["median"] for rate in rates]
    below = [rate["median"] - rate["quartile_1"] for rate in rates]
    above = [rate["quartile_3"] - rate["median"] for rate in rates]
    colours = ["#2a6f97"] + ["#8c8c8c"] * (len(names) - 1)
    figure, axes = plt.subplots(figsize=(6, 0.9 + 0.7 * len(names)), layout="constrained")
    bars = axes.barh(names, medians, xerr=[below, above], height=0.6, capsize=4, color=colours)
    axes.bar_label(bars, [f"{value:,.0f}" for value in medians], label_type="center", color="white")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("training tokens/s (bars: median, whiskers: quartiles)")
    axes.set_title(title(result["settings"]), fontsize=10)
    figure.savefig(path, dpi=150)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        request = json.loads(sys.argv[2])
        serve(request["name"], argparse.Namespace(**request["options"]), Path(request["folder"]))
        return
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        result = compare(options, Path(folder))
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)
    if options.picture:
        draw(result, options.picture)


if __name__ == "__main__":
    main()
