"""What `predict.py` does with a classifier: the label of each prompt, with the probabilities of all labels."""

from __future__ import annotations

import time

import numpy as np
from rich.text import Text

from gpt2x.config import PredictConfig
from gpt2x.data.rows.labelled import encode
from gpt2x.data.sources.labelled import Example
from gpt2x.generate.class_scorer import ClassScorer
from gpt2x.generate.output import Lines, printable, say
from gpt2x.generate.prompts import Prompt
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.console import console


def classify_prompts(config: PredictConfig, prompts: list[Prompt], pretrained: Pretrained, lines: Lines | None) -> str:
    """Classify prompts in batches of generation.batch_size; return a summary for the user.

    Only the first max_seq_len tokens of a longer prompt are read.

    Args:
        config: the configuration of `predict.py`.
        prompts: blanks around them are removed, as around training texts.
        pretrained: a classifier.
        lines: destination of JSON lines, or None for the terminal.

    Raises:
        UserError: a line cannot be written.
    """
    labels, seq_len = pretrained.model.labels or [], pretrained.model.max_seq_len
    size = min(config.generation.batch_size, len(prompts))
    scorer = ClassScorer(pretrained.net, size, seq_len)  # type: ignore[arg-type]
    started, num_cut = time.perf_counter(), 0
    for start in range(0, len(prompts), size):
        texts = [prompt.text for prompt in prompts[start : start + size]]
        ids, mask, lengths = encode([Example(text.strip(), "", "") for text in texts], pretrained.tokenizer, seq_len)
        num_cut += int((lengths > seq_len).sum())
        for text, row in zip(texts, np.exp(scorer.score(ids, mask)), strict=True):
            label, probabilities = with_names(row, labels)
            if lines is None:
                show(text, label, probabilities)
            else:
                lines.write({"prompt": text, "label": label, "probabilities": probabilities})
    if num_cut:
        say(f"{num_cut} prompts were cut to their first {seq_len} tokens")
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    return f"{count} classified in {time.perf_counter() - started:.1f} s, compiling included"


def with_names(probabilities: np.ndarray, labels: list[str]) -> tuple[str, dict[str, float]]:
    """probabilities (K,) -> the most likely label, and the probability of each label, rounded to 6 digits."""
    named = {label: round(float(p), 6) for label, p in zip(labels, probabilities, strict=True)}
    return labels[int(probabilities.argmax())], named


def show(prompt: str, label: str, probabilities: dict[str, float]) -> None:
    """Print one answer on the terminal."""
    rest = ", ".join(f"{name} {p:.4f}" for name, p in probabilities.items())
    console.rich.print(Text(printable(prompt), style="bold"), soft_wrap=True)
    console.rich.print(Text(f"  {label}  ({rest})"), soft_wrap=True)
