"""What `predict.py` does with a classifier: the label of each prompt with all probabilities, or its one score."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.text import Text

from gpt2x.config import PredictConfig
from gpt2x.data.rows.labelled import encode
from gpt2x.data.sources.labelled import Example
from gpt2x.generate.class_scorer import ClassScorer, log_softmax
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
    scorer = ClassScorer(pretrained.net, size, seq_len, pad_id=pretrained.special_ids.pad)  # type: ignore[arg-type]
    started, num_cut = time.perf_counter(), 0
    for start in range(0, len(prompts), size):
        texts = [prompt.text for prompt in prompts[start : start + size]]
        ids, mask, lengths = encode([Example(text.strip(), "", "") for text in texts], pretrained.tokenizer, seq_len)
        num_cut += int((lengths > seq_len).sum())
        for text, row in zip(texts, scorer.logits(ids, mask), strict=True):
            said = answer(row, labels)
            if lines is None:
                show(text, said)
            else:
                lines.write({"prompt": text} | said)
    if num_cut:
        say(f"{num_cut} prompts were cut to their first {seq_len} tokens")
    count = "1 prompt" if len(prompts) == 1 else f"{len(prompts)} prompts"
    return f"{count} classified in {time.perf_counter() - started:.1f} s, compiling included"


def answer(logits: np.ndarray, labels: list[str]) -> dict[str, Any]:
    """Return what a classifier says of a text: `label` and `probabilities`, or `score` if it has one class.

    A head of one score has no classes to choose from. Its logit is what transformers' model returns: the value of a
    regression, or a reward. Its probability is the sigmoid, as of transformers' pipeline; it has a meaning if the head
    was trained so (DialogRPT).

    Args:
        logits: (K,).
        labels: the K classes.
    """
    if len(labels) == 1:
        share = float(np.exp(-np.logaddexp(0, -logits[0])))
        return {"score": round(float(logits[0]), 6), "probabilities": {labels[0]: round(share, 6)}}
    probabilities = np.exp(log_softmax(logits))
    named = {label: round(float(p), 6) for label, p in zip(labels, probabilities, strict=True)}
    return {"label": labels[int(probabilities.argmax())], "probabilities": named}


def show(prompt: str, said: dict[str, Any]) -> None:
    """Print one answer on the terminal."""
    console.rich.print(Text(printable(prompt), style="bold"), soft_wrap=True)
    rest = ", ".join(f"{name} {p:.4f}" for name, p in said["probabilities"].items())
    if "score" in said:
        console.rich.print(Text(f"  score {said['score']:.4f}  (sigmoid {rest})"), soft_wrap=True)
        return
    console.rich.print(Text(f"  {said['label']}  ({rest})"), soft_wrap=True)
