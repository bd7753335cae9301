"""Runs that many tests start from: made once per session, however many workers run it.

A test reads them, or copies them; what it writes goes to its own `paths.outputs`.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from tests.support import in_process
from tests.support.small_runs import run_dirs, small
from tests.support.tokenizers import grown_tokenizer

LONG = ["trainer.max_steps=16", "model.dropout=0.1", "trainer.eval_every_steps=5", "trainer.checkpoint_every_steps=4",
        "trainer.keep_last=9", "trainer.keep_best=false"]  # fmt: skip
SAMPLES = ["trainer.sample_prompts=['the cat']"]
LORA = ["task=finetune", "lora=r8", "trainer.max_steps=6", "trainer.eval_every_steps=3", "trainer.keep_last=9",
        "trainer.checkpoint_every_steps=3"]  # fmt: skip
GROWN = ["task=finetune", "trainer.frozen=[wpe.weight,'h.[0].*']", "optimizer.layer_decay=0.8",
         "trainer.max_steps=4", "trainer.eval_every_steps=2", "trainer.checkpoint_every_steps=2",
         "trainer.keep_last=9", "tokenizer.extend=true"]  # fmt: skip
ADDED = ("<|user|>", "<|assistant|>")
CLASSIFIER = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=64",
              "model.dropout=0", "trainer.seq_len=48", "tokenizer.vocab_size=300", "hardware.peak_tflops=0.1",
              "tracker=none", "task=classification", "task.requires_load=false", "dataset=labelled_text",
              "trainer.global_batch_size=8", "trainer.micro_batch_size=4", "optimizer.learning_rate=5e-3",
              "trainer.max_steps=40", "trainer.eval_every_steps=10", "trainer.checkpoint_every_steps=20",
              "trainer.keep_last=9", "trainer.best_metric=val/accuracy"]  # fmt: skip
INSTRUCTIONS = ["model.num_layers=2", "model.hidden_size=32", "model.num_heads=2", "model.max_seq_len=64",
                "model.dropout=0", "trainer.seq_len=64", "hardware.peak_tflops=0.1", "tracker=none",
                "tokenizer.vocab_size=300", "task=instruction", "task.requires_load=false", "dataset=instructions",
                "trainer.keep_best=false", "trainer.keep_last=9"]  # fmt: skip
TUNED = ["dataset.packing=true", "trainer.sample_prompts=[cat]", "trainer.global_batch_size=4",
         "trainer.max_steps=120", "optimizer.learning_rate=5e-3"]  # fmt: skip
TEMPLATE = {"with_input": "{instruction} {input} =", "without_input": "{instruction} ="}
SAID = ["one", "two", "red", "blue", "cat", "dog"]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: its corpus, cache and outputs.
        run_dir: what it wrote.
        options: the command line that made it.
        stdout: what it printed.
    """

    folder: Path
    run_dir: Path
    options: list[str]
    stdout: str

    def checkpoint(self, step: int) -> Path:
        """Return the checkpoint of a step."""
        return self.run_dir / "checkpoints" / f"step_{step}"

    def options_at(self, directory: Path) -> list[str]:
        """Return its command line with all that is written below `directory`, its data from where they are."""
        return [*self.options, f"paths.outputs={directory}/outputs"]

    def again(self, directory: Path, *overrides: str) -> in_process.Finished:
        """Train with its options and more, in this process, below `directory`."""
        return in_process.run("train", *self.options_at(directory), *overrides)

    def copy(self, directory: Path) -> Path:
        """Copy its outputs to `directory`/outputs -> the copied run directory."""
        shutil.copytree(self.folder / "outputs", directory / "outputs")
        return directory / self.run_dir.relative_to(self.folder)


class Zoo:
    """The runs, each made when it is first asked for."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(exist_ok=True)

    @cached_property
    def plain(self) -> Run:
        """Dropout and accumulation, past an epoch boundary; evaluations, checkpoints and samples on the way."""
        return self.create("plain", lambda folder: [*small(folder), *LONG, *SAMPLES])

    @cached_property
    def lora(self) -> Run:
        """Adapters beside the last weights of `plain`."""
        plain = self.plain
        return self.create("lora", lambda folder: [*small(folder), *LORA, f"load={plain.run_dir}"])

    @cached_property
    def grown(self) -> Run:
        """A fine-tuning of `plain` that adds two tokens and freezes some tensors."""
        plain = self.plain

        def options(folder: Path) -> list[str]:
            from tests.commands import convert as main

            typed = small(folder)
            tokenizer = grown_tokenizer(plain.checkpoint(16) / "tokenizer", folder / "tokenizer", ADDED)
            assert main(["--to", "hf", "--output", str(folder / "hf"), str(plain.checkpoint(16))]) == 0
            with (folder / "corpus.txt").open("a", encoding="utf-8") as file:
                file.writelines(f"\n<|user|>the cat sat on a mat<|assistant|>some dogs ran over {i}" for i in range(60))
            return [*typed, *GROWN, f"load={folder}/hf", f"tokenizer.path={tokenizer}"]

        return self.create("grown", options)

    @cached_property
    def classifier(self) -> Run:
        """Three classes by the last word of a text, from fresh weights."""

        def options(folder: Path) -> list[str]:
            write_texts(folder / "texts")
            return [*CLASSIFIER, *paths(folder), f"dataset.path={folder}/texts"]

        return self.create("classifier", options)

    @cached_property
    def instructions(self) -> Run:
        """Packed instructions, whose answer is the word that is asked for."""

        def options(folder: Path) -> list[str]:
            write_instructions(folder)
            return [*INSTRUCTIONS, *TUNED, *paths(folder), f"dataset.path={folder}",
                    f"dataset.template={folder}/template.yaml"]  # fmt: skip

        return self.create("instructions", options)

    def create(self, name: str, options: Callable[[Path], list[str]]) -> Run:
        """Return the run `name`, which one worker makes while the others wait."""
        folder = self.root / name
        with locked(self.root / f"{name}.lock"):
            if not (folder / "run.json").is_file():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                typed = options(folder)
                printed = in_process.run("train", *typed).stdout
                content = json.dumps({"options": typed, "stdout": printed})
                (folder / "run.json").write_text(content, encoding="utf-8")
        written = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        (run_dir,) = run_dirs(folder)
        return Run(folder, run_dir, written["options"], written["stdout"])


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file lock, over all processes of this machine."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def paths(folder: Path) -> list[str]:
    """Return the options that keep what a run writes below `folder`."""
    return [f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache"]


def write_texts(folder: Path) -> Path:
    """Write texts of random words, whose class is the word that they end with."""
    random = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mats", "green", "hill", "and", "then"]
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 160), ("dev", 33)):
        rows = []
        for _ in range(count):
            text = " ".join(random.choice(words, random.integers(1, 20)))
            label = str(random.choice(["sad", "fine", "glad"]))
            rows.append(json.dumps({"text": f"{text} {label}", "label": label}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_instructions(folder: Path) -> None:
    """Write instructions of a word to be said, with an input of zero to ten words that tell nothing."""
    random = np.random.default_rng(0)
    for name, count in (("train", 240), ("val", 24)):
        rows = []
        for _ in range(count):
            word = str(random.choice(SAID))
            filler = " ".join(["la"] * random.integers(0, 11))
            rows.append({"instruction": word, "input": filler, "output": f" {word}"})
        (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "template.yaml").write_text(yaml.safe_dump(TEMPLATE), encoding="utf-8")
