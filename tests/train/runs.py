"""Runs of the real program on a small corpus, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=32",
         "trainer.seq_len=32", "trainer.global_batch_size=8", "trainer.micro_batch_size=4", "tracker=none",
         "tokenizer.vocab_size=300", "trainer.sample_prompts=[]"]  # fmt: skip


def corpus(directory: Path) -> Path:
    """About 60 blocks of 33 tokens of words that a bigram model could learn."""
    import numpy as np

    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "then",
        "some",
        "dogs",
        "ran",
        "over",
        "this",
        "green",
        "hill",
    ]
    generator = np.random.default_rng(0)
    lines = [" ".join(words[i] for i in generator.integers(0, len(words), 12)) for _ in range(120)]
    path = directory / "corpus.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def start(script: str, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run an entry script (or `-m` and a module) to its end."""
    script = script if script == "-m" else str(ROOT / script)
    done = subprocess.run([sys.executable, script, *overrides], capture_output=True, text=True, check=False)
    if check and done.returncode:
        printed = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        raise AssertionError(f"{script} {overrides} ended with {done.returncode}:\n{printed}")
    return done


def small(directory: Path) -> list[str]:
    """Options of a small model on the small corpus, with everything under `directory`."""
    if not (directory / "corpus.txt").exists():
        corpus(directory)
    return [*SMALL, f"paths.outputs={directory}/outputs", f"paths.cache={directory}/cache", "dataset=text",
            f"dataset.path={directory}/corpus.txt"]  # fmt: skip


def train(directory: Path, *overrides: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run train.py on the small corpus to its end."""
    return start("train.py", *small(directory), *overrides, check=check)


def begin(directory: Path, *overrides: str) -> subprocess.Popen:
    """Start train.py on the small corpus; its output can be read line by line."""
    command = [sys.executable, str(ROOT / "train.py"), *small(directory), *overrides]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run_dirs(directory: Path) -> list[Path]:
    """Run directories, oldest first."""
    return sorted(path.parent for path in (directory / "outputs").rglob("metrics.jsonl"))


def curve(run_dir: Path, *keys: str) -> dict[int, tuple]:
    """Metrics by step, floats exactly as written."""
    keys = keys or ("train/loss", "train/lr", "train/grad_norm")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step appears twice"
    return {line["step"]: tuple(line.get(key) for key in keys) for line in lines}
