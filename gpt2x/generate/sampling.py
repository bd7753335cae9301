"""The choice of the next token from logits, on the host in numpy (imports no mindspore).

Definitions and order are those of transformers' generation/logits_process.py (RepetitionPenaltyLogitsProcessor,
MinNewTokensLengthLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper) and of
`_get_logits_processor` in its generation/utils.py. Two things differ. top_k is off by default (transformers: 50).
Padding is not part of a text; in transformers, if padding is EOS, a repetition penalty weakens EOS in shorter prompts.

Legend: B rows, V vocab.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gpt2x.config import GenerationConfig


def is_sampling(config: GenerationConfig) -> bool:
    """Return True if tokens are drawn, False if the most likely one is taken."""
    if config.temperature == 0:
        return False
    return bool(config.do_sample or config.temperature or config.top_k or config.top_p)


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Return True if the most likely token of unchanged logits is taken, which a graph can choose."""
    return not is_sampling(config) and config.repetition_penalty == 1.0 and config.min_new_tokens == 0


def next_tokens(
    logits: np.ndarray,
    texts: Sequence[Sequence[int]],
    draws: Sequence[float],
    config: GenerationConfig,
    forbidden: Sequence[int],
) -> list[int]:
    """Return one token per row.

    Args:
        logits: (B, V) fp32.
        texts: the ids of each row so far, prompt and completion.
        draws: a number in [0, 1) for each row, from `draw`.
        config: decoding options.
        forbidden: ids that must not be chosen: EOS before min_new_tokens.
    """
    if config.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, texts, config.repetition_penalty)
    if forbidden:
        logits = logits.copy()
        logits[:, list(forbidden)] = -np.inf
    if not is_sampling(config):
        return logits.argmax(axis=-1).tolist()
    return [sample(row, number, config) for row, number in zip(logits, draws, strict=True)]


def sample(logits: np.ndarray, number: float, config: GenerationConfig) -> int:
    """Return the token of logits (V,) that a number drawn from [0, 1) selects.

    Only the tokens that top_k and top_p keep are sorted and summed, mostly some hundred of 50,257.
    """
    if config.temperature is not None:
        logits = logits / np.float32(config.temperature)
    ids = None
    if config.top_k:
        ids = top_k_ids(logits, config.top_k)
        logits = logits[ids]
    if config.top_p is not None and config.top_p < 1:
        kept = top_p_ids(logits, config.top_p)
        ids, logits = kept if ids is None else ids[kept], logits[kept]
    mass = np.cumsum(softmax(logits.astype(np.float64)))
    index = int(np.searchsorted(mass, number * mass[-1], side="right"))
    return index if ids is None else int(ids[index])


def draw(seed: int, index: int, step: int) -> float:
    """Return a number in [0, 1), a pure function of seed, prompt index and step (Philox, a counter-based generator).

    So the sample of a prompt does not depend on other prompts, the batch size or the order of decoding.
    """
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, index], counter=[0, 0, 0, step])).random()


def penalise_repetition(logits: np.ndarray, texts: Sequence[Sequence[int]], penalty: float) -> np.ndarray:
    """Divide the logits of ids that a row already has by the penalty, or multiply negative ones (arXiv:1909.05858)."""
    logits = logits.copy()
    for row, text in zip(logits, texts, strict=True):
        ids = np.unique(np.asarray(text))
        row[ids] = np.where(row[ids] < 0, row[ids] * np.float32(penalty), row[ids] / np.float32(penalty))
    return logits


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest logits of each row and ties with the k-th; the others become -inf."""
    return keep(logits, [top_k_ids(row, k) for row in logits])


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest tokens whose probabilities sum to at least p (arXiv:1904.09751); the others become -inf."""
    return keep(logits, [top_p_ids(row, p) for row in logits])


def keep(logits: np.ndarray, ids: Sequence[np.ndarray]) -> np.ndarray:
    """Keep the logits (B, V) at each row's ids; the others become -inf."""
    kept = np.full_like(logits, -np.inf)
    for target, row, kept_ids in zip(kept, logits, ids, strict=True):
        target[kept_ids] = row[kept_ids]
    return kept


def top_k_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """Return the ids, ascending, that `keep_top_k` keeps of logits (V,)."""
    index = max(0, len(logits) - k)
    return np.flatnonzero(logits >= np.partition(logits, index)[index])


def top_p_ids(logits: np.ndarray, p: float) -> np.ndarray:
    """Return the ids, ascending, that `keep_top_p` keeps of logits (V,); of equals at the end the later ones.

    Tokens with a probability up to (1 - p) / V sum to at most 1 - p, so they are left out before the rest is sorted.
    """
    probabilities = softmax(logits)
    candidates = probabilities[probabilities > (1 - p) / len(logits) * (1 - 1e-3)]  # rounded towards more of them
    descending = np.sort(candidates)[::-1]
    cumulative = np.cumsum(descending, dtype=np.float64)  # the probability of each candidate plus all above it
    count = max(1, int(np.searchsorted(cumulative, p, side="left")) + 1)  # whose predecessors sum to less than p
    count = min(count, len(descending))
    least = descending[count - 1]
    above = np.flatnonzero(probabilities > least)
    equal = np.flatnonzero(probabilities == least)
    return np.sort(np.concatenate([above, equal[len(equal) - (count - len(above)) :]]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of each row."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
