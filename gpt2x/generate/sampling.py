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


def is_plain_greedy(config: GenerationConfig) -> bool:
    """Whether the likeliest token of the model's own logits is taken: a choice that a graph makes by itself."""
    return not is_sampling(config) and config.repetition_penalty == 1.0 and config.min_new_tokens == 0


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
    return [sample(row, number, config) for row, number in zip(logits, draws, strict=True)]


def sample(logits: np.ndarray, number: float, config: GenerationConfig) -> int:
    """The token on which a draw from [0, 1) falls, of logits (V,).

    What top_k and top_p leave is sorted and summed alone: of a vocabulary of 50,257 mostly some hundred tokens.
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
    place = int(np.searchsorted(mass, number * mass[-1], side="right"))
    return place if ids is None else int(ids[place])


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
    return keep(logits, [top_k_ids(row, k) for row in logits])


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The fewest tokens whose probabilities sum to p or more (Holtzman et al., arXiv:1904.09751); -inf elsewhere."""
    return keep(logits, [top_p_ids(row, p) for row in logits])


def keep(logits: np.ndarray, ids: Sequence[np.ndarray]) -> np.ndarray:
    """The logits (B, V) of each row's ids, -inf elsewhere."""
    kept = np.full_like(logits, -np.inf)
    for target, row, own in zip(kept, logits, ids, strict=True):
        target[own] = row[own]
    return kept


def top_k_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """The ids, ascending, of `keep_top_k` in logits (V,)."""
    place = max(0, len(logits) - k)
    return np.flatnonzero(logits >= np.partition(logits, place)[place])


def top_p_ids(logits: np.ndarray, p: float) -> np.ndarray:
    """The ids, ascending, of `keep_top_p` in logits (V,); of equals at the end the later ones.

    Tokens of a probability up to (1 - p) / V hold 1 - p together at most, so they are left out before the rest is
    sorted.
    """
    probabilities = softmax(logits)
    candidates = probabilities[probabilities > (1 - p) / len(logits) * (1 - 1e-3)]  # rounded towards more of them
    descending = np.sort(candidates)[::-1]
    behind = np.cumsum(descending, dtype=np.float64)  # the probability of each candidate and all above it
    count = max(1, int(np.searchsorted(behind, p, side="left")) + 1)  # whose predecessors hold less than p
    count = min(count, len(descending))
    least = descending[count - 1]
    above = np.flatnonzero(probabilities > least)
    equal = np.flatnonzero(probabilities == least)
    return np.sort(np.concatenate([above, equal[len(equal) - (count - len(above)) :]]))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of each row."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)
