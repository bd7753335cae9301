"""Conversion and resharding of a 13B-shaped model: time, peak memory, and whether every bit comes back.

`python benchmarks/reshard.py --work DIR --out FILE`: writes random weights as Hugging Face shards, converts them,
reshards them, lets a rank read its part, merges, exports. Each step has its own process, and what no later step
needs is removed: at most two copies lie in DIR at a time, none at the end. benchmarks/README.md explains the numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from gpt2x.checkpoint import open_checkpoint
from gpt2x.checkpoint.files import sha256
from gpt2x.checkpoint.tensors import LazyTensors, Spec, pieces
from gpt2x.config import ParallelConfig
from gpt2x.config.layout import Coordinates
from gpt2x.config.options import known_models, read_option
from gpt2x.convert import load_source
from gpt2x.convert.huggingface import export_huggingface
from gpt2x.model.stats import num_params, tensor_shapes
from gpt2x.parallel.placement import placements

BITS = {"fp16": ("<f2", "<u2", 0xBFFF), "fp32": ("<f4", "<u4", 0xBFFFFFFF)}  # the mask keeps them finite: below 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="a directory that does not exist, on a large disk")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--model", choices=known_models(), default="gpt2_13b")
    parser.add_argument("--layers", type=int, help="fewer than the model has")
    parser.add_argument("--dtype", choices=BITS, default="fp16")
    parser.add_argument("--parallel", default="tp8")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)  # one of this file's steps, in a process
    return parser.parse_args()


class RandomSource:
    """Weights of random bits, made when they are read; the same at each reading."""

    kind, tokenizer_dir = "random", None

    def __init__(self, options: argparse.Namespace):
        model = known_models()[options.model]
        self.model = replace(model, vocab_size=50257, num_layers=options.layers or model.num_layers)
        self.path, self.bits = options.work, BITS[options.dtype]

    def weights(self) -> LazyTensors:
        dtype, integer, mask = self.bits

        def read(name, start, shape):
            rng = np.random.Generator(np.random.SFC64([zlib.crc32(name.encode()), *start]))
            count = int(np.prod(shape)) * np.dtype(dtype).itemsize // 8 + 1
            bits = rng.integers(0, 1 << 64, count, np.uint64).view(integer)[: int(np.prod(shape))]
            return (bits & np.array(mask, integer)).view(dtype).reshape(shape)

        shapes = tensor_shapes(self.model)
        return LazyTensors({name: Spec(shape, np.dtype(dtype)) for name, shape in shapes.items()}, read)


def generate(options: argparse.Namespace) -> None:
    export_huggingface(RandomSource(options), options.work / "hf")


def compare(options: argparse.Namespace) -> None:
    """Every bit of the Hugging Face shards and the checkpoint made from them."""
    ours, theirs = (
        load_source(options.work / "hf").weights(),
        open_checkpoint(options.work / "whole").tensors("weights"),
    )
    assert ours.specs == theirs.specs
    for name in ours:
        for a, b in zip(pieces(ours.box(name)), pieces(theirs.box(name)), strict=True):
            assert a.tobytes() == b.tobytes(), name


def read_rank(options: argparse.Namespace) -> None:
    """The local tensors of the last rank of the layout, one after the other, from either form."""
    parallel = read_option("parallel", options.parallel, ParallelConfig)
    whole, sliced = (open_checkpoint(options.work / form).tensors("weights") for form in ("whole", "sliced"))
    model = replace(RandomSource(options).model, pad_vocab_multiple=128)
    for name, part in placements(
        model, Coordinates(parallel, parallel.data * parallel.tensor * parallel.pipeline - 1)
    ).items():
        assert part.read(whole, name).tobytes() == part.read(sliced, name).tobytes(), name


STEPS = {"generate": generate, "compare": compare, "read_rank": read_rank}


def measure(name: str, command: list[str]) -> dict:
    """Runs a process: its time, peak resident memory and peak anonymous memory (sampled)."""
    started, anonymous = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    ended = threading.Event()

    def watch() -> None:
        nonlocal anonymous
        while not ended.wait(0.01):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            if "RssAnon:" in status:
                anonymous = max(anonymous, int(status.split("RssAnon:")[1].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    ended.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed: {' '.join(command)}")
    row = {
        "step": name,
        "time_s": round(time.perf_counter() - started, 1),
        "peak_rss_mb": round(usage.ru_maxrss / 1024),
        "peak_anonymous_mb": round(anonymous / 1024),
    }
    print(
        "{step:10} {time_s:8} s   peak RSS {peak_rss_mb} MB, anonymous {peak_anonymous_mb} MB".format(**row), flush=True
    )
    return row


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def main() -> None:
    options = arguments()
    if options.step:
        STEPS[options.step](options)
        return
    options.work.mkdir(parents=True)
    hf, whole, sliced, merged, back = (
        str(options.work / name) for name in ("hf", "whole", "sliced", "merged", "hf_back")
    )
    own = [__file__, *sys.argv[1:], "--step"]
    model = RandomSource(options).model
    rows = []
    try:
        rows.append(measure("import", ["-c", "import gpt2x.commands.convert, gpt2x.commands.checkpoint"]))
        rows.append(measure("generate", [*own, "generate"]))
        num_bytes, before = sum(file.stat().st_size for file in Path(hf).iterdir()), hashes(Path(hf))
        rows.append(measure("convert", ["-m", "gpt2x", "convert", "--to", "gpt2x", "--output", whole, hf]))
        rows.append(measure("compare", [*own, "compare"]))
        shutil.rmtree(hf)
        rows.append(
            measure("reshard", ["-m", "gpt2x", "checkpoint", "reshard", whole, sliced, "--parallel", options.parallel])
        )
        rows.append(measure("read_rank", [*own, "read_rank"]))
        files = open_checkpoint(whole).manifest["files"]
        shutil.rmtree(whole)
        rows.append(measure("merge", ["-m", "gpt2x", "checkpoint", "merge", sliced, merged]))
        shutil.rmtree(sliced)
        rows.append(measure("verify", ["-m", "gpt2x", "checkpoint", "verify", merged]))
        assert open_checkpoint(merged).manifest["files"] == files  # sizes and SHA-256
        rows.append(measure("export", ["-m", "gpt2x", "convert", "--to", "hf", "--output", back, merged]))
        assert hashes(Path(back)) == before
    finally:
        shutil.rmtree(options.work)
    result = {
        "model": options.model,
        "layers": model.num_layers,
        "num_params": num_params(model),
        "dtype": options.dtype,
        "gb": round(num_bytes / 1e9, 2),
        "parallel": options.parallel,
        "steps": rows,
    }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
