"""The small corpus and model that most runs of the tests train, and how to read what a run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=32",
         "trainer.seq_len=32", "trainer.global_batch_size=8", "trainer.micro_batch_size=4", "tracker=none",
         "tokenizer.vocab_size=300", "trainer.sample_prompts=[]", "hardware.peak_tflops=0.1"]  # fmt: skip
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "some", "dogs", "ran", "over", "this", "green", "hill"]


def corpus(directory: Path) -> Path:
    """Write about 60 blocks of 33 tokens of words that a bigram model could learn."""
    generator = np.random.default_rng(0)
    lines = [" ".join(WORDS[i] for i in generator.integers(0, len(WORDS), 12)) for _ in range(120)]
    path = directory / "corpus.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def small(directory: Path) -> list[str]:
    """Return the options of a small model on the small corpus, with all files under `directory`."""
    if not (directory / "corpus.txt").exists():
        corpus(directory)
    return [*SMALL, f"paths.outputs={directory}/outputs", f"paths.cache={directory}/cache", "dataset=text",
            f"dataset.path={directory}/corpus.txt"]  # fmt: skip


def run_dirs(directory: Path) -> list[Path]:
    """Return the run directories below `directory`/outputs, oldest first; the directory of a sweep is none."""
    runs = sorted(path.parent for path in (directory / "outputs").rglob("metrics.jsonl"))
    return [run for run in runs if not (run / "sweep.json").exists()]


def curve(run_dir: Path, *keys: str) -> dict[int, tuple]:
    """Return a run's metrics by step, floats exactly as written."""
    keys = keys or ("train/loss", "train/lr", "train/grad_norm")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["step"] for line in lines}) == len(lines), "a step appears twice"
    return {line["step"]: tuple(line.get(key) for key in keys) for line in lines}
