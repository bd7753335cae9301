"""The choice of the next token from logits, on the host in numpy (imports no mindspore).

Definitions and order are those of transformers' generation/logits_process.py (RepetitionPenaltyLogitsProcessor,
MinNewTokensLengthLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper) and of
`_get_logits_processor` in its generation/utils.py. Two things differ. top_k is off unless it is given (transformers:
50). The pads of a batch are no tokens: there, where the pad is EOS, a repetition penalty weakens EOS in the shorter
prompts.

Legend: B rows, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2x.config import GenerationConfig


def is_sampling(config: GenerationConfig) -> bool:
    """Whether tokens are drawn; else the likeliest is taken."""
    if config.temperature == 0:
        return False
    return bool(config.do_sample or config.temperature or config.top_k or config.top_p)


def next_tokens(
    logits: np.ndarray,
    texts: Sequence[Sequence[int]],
    draws: Sequence[float],
    config: GenerationConfig,
    forbidden: Sequence[int],
) -> list[int]:
    """One token a row.

    Args:
        logits: (B, V) fp32.
        texts: the ids of each row so far, prompt and completion.
        draws: a number in [0, 1) for each row, from `draw`.
        config: decoding options.
        forbidden: ids that must not come now: EOS before min_new_tokens.
    """
    if config.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, texts, config.repetition_penalty)
    if forbidden:
        logits = logits.copy()
        logits[:, list(forbidden)] = -np.inf
    if not is_sampling(config):
        return logits.argmax(axis=-1).tolist()
    if config.temperature is not None:
        logits = logits / np.float32(config.temperature)
    if config.top_k:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None and config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    mass = np.cumsum(softmax(logits.astype(np.float64)), axis=-1)  # (B, V)
    return [int(np.searchsorted(row, draw * row[-1], side="right")) for row, draw in zip(mass, draws, strict=True)]


def draw(seed: int, index: int, step: int) -> float:
    """A number in [0, 1): a pure function of the seed, the prompt's index and the step (Philox, a counter generator).

    So a prompt's sample does not depend on the others, on the batch size or on the order of decoding.
    """
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, index], counter=[0, 0, 0, step])).random()


def penalise_repetition(logits: np.ndarray, texts: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
    """Logits of ids that the row already has, divided by the penalty, or times it where negative (arXiv:1909.05858)."""
    logits = logits.copy()
    for row, text in zip(logits, texts, strict=True):
        ids = np.unique(np.asarray(text))
        row[ids] = np.where(row[ids] < 0, row[ids] * np.float32(penalty), row[ids] / np.float32(penalty))
    return logits


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """The k largest logits of each row, ties with the k-th included; -inf elsewhere."""
    size = logits.shape[-1]
    k = min(k, size)
    least = np.partition(logits, size - k, axis=-1)[:, size - k, None]  # (B, 1)
    return np.where(logits < least, -np.inf, logits)


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The fewest tokens whose probabilities sum to p or more (Holtzman et al., arXiv:1904.09751); -inf elsewhere."""
    order = np.argsort(logits, axis=-1, kind="stable")  # ascending
    remove = np.cumsum(softmax(np.take_along_axis(logits, order, axis=-1)), axis=-1) <= 1 - p
    remove[:, -1] = False  # the likeliest stays
    removed = np.zeros_like(remove)
    np.put_along_axis(removed, order, remove, axis=-1)
    return np.where(removed, -np.inf, logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
