"""What `predict.py` does with a classifier: the label of each prompt, with the probabilities of all."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from gpt2x.config import PredictConfig
from gpt2x.data.rows.labelled import encode
from gpt2x.data.sources.labelled import Example
from gpt2x.evaluate.classification import ClassScorer
from gpt2x.pretrained import Pretrained
from gpt2x.runtime.console import console

if TYPE_CHECKING:
    from gpt2x.generate.run import Lines


def classify(config: PredictConfig, pretrained: Pretrained, prompts: list[str], lines: Lines | None) -> None:
    """Classify prompts in batches of generation.batch_size; of one beyond max_seq_len the first tokens are read.

    Args:
        config: of `predict.py`.
        pretrained: a classifier.
        prompts: stripped of blanks around them, as training texts are.
        lines: JSON lines, or None for the terminal.

    Raises:
        UserError: a line cannot be written.
    """
    from gpt2x.generate.run import say

    labels, seq_len = pretrained.model.labels or [], pretrained.model.max_seq_len
    size = min(config.generation.batch_size, len(prompts))
    scorer = ClassScorer(pretrained.net, size, seq_len)  # type: ignore[arg-type]
    started, num_cut = time.perf_counter(), 0
    for start in range(0, len(prompts), size):
        batch = prompts[start : start + size]
        ids, mask, lengths = encode([Example(p.strip(), "", "") for p in batch], pretrained.tokenizer, seq_len)
        num_cut += int((lengths > seq_len).sum())
        for prompt, row in zip(batch, np.exp(scorer.score(ids, mask)), strict=True):
            answer = {"prompt": prompt, **named(row, labels)}
            if lines is None:
                show(answer)
            else:
                lines.write(json.dumps(answer, ensure_ascii=False) + "\n")
                lines.count += 1
    if num_cut:
        say(f"{num_cut} prompts were cut to their first {seq_len} tokens")
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    say(f"{count} classified in {time.perf_counter() - started:.1f} s, compiling included")


def named(probabilities: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """probabilities (K,) -> the likeliest label, and each label's probability."""
    return {
        "label": labels[int(probabilities.argmax())],
        "probabilities": {label: round(float(p), 6) for label, p in zip(labels, probabilities, strict=True)},
    }


def show(answer: dict[str, Any]) -> None:
    """One answer on the terminal."""
    from gpt2x.generate.run import printable

    rest = ", ".join(f"{label} {p:.4f}" for label, p in answer["probabilities"].items())
    console.rich.print(Text(printable(answer["prompt"]), style="bold"), soft_wrap=True)
    console.rich.print(Text(f"  {answer['label']}  ({rest})"), soft_wrap=True)
