"""The perplexity that token frequencies reach by themselves: what a language model has to beat."""

from __future__ import annotations

import numpy as np

from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import evaluation_batches


def token_counts(split: Split, vocab_size: int, max_rows: int | None = None) -> np.ndarray:
    """Return how often each id is a target in the rows that a validation reads, int64 (vocab_size,)."""
    counts = np.zeros(vocab_size, np.int64)
    for batch in evaluation_batches(split, 256, max_rows):
        targets = batch["input_ids"][:, 1:][batch["attention_mask"][:, 1:] > 0]
        counts += np.bincount(targets, minlength=vocab_size)
    return counts


def unigram_perplexity(train: Split, val: Split, vocab_size: int, max_rows: int | None = None) -> float:
    """Return exp of the mean nll of the validation targets under the frequencies of the training targets.

    Every frequency is raised by one, so that no target has probability 0. `max_rows` is trainer.max_eval_rows.
    """
    frequencies = token_counts(train, vocab_size) + 1
    counts = token_counts(val, vocab_size, max_rows)
    return float(np.exp(-(counts * np.log(frequencies / frequencies.sum())).sum() / counts.sum()))
