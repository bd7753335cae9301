"""Three ways to state a perplexity (docs/evaluation.md says what each is comparable with).

All of them score windows of one length in batches of one size, so that one graph serves them. `replicas` divides the
batches among replicas; every process returns the same result.
Legend: B batch, R <= B rows of a batch, L window length (`seq_len`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice

import numpy as np

from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import batches
from gpt2x.evaluate.bootstrap import WindowScores
from gpt2x.evaluate.scoring import Scorer, padded, perplexity
from gpt2x.evaluate.text import TokenStream, Window, num_windows, windows
from gpt2x.parallel.replica_batches import ALONE, ReplicaBatches

Track = Callable[[Iterable[Window], int], Iterable[Window]]  # shows progress; gets their number


@dataclass(frozen=True)
class Result:
    """A perplexity and what it counts."""

    protocol: str
    loss: float  # nats per unit
    ppl: float  # exp(loss)
    unit: str
    num_units: int
    num_tokens: int  # tokens scored, each once
    num_windows: int
    dropped_tokens: int  # tokens at the end of the text that are in no window
    total_nll: float  # nats, sum over the tokens scored
    seq_len: int
    stride: int
    scores: WindowScores = field(compare=False, repr=False)  # their loss is `loss`, except for rounding

    @property
    def metrics(self) -> dict[str, float]:
        """The values that evaluations compare."""
        return {"loss": self.loss, "ppl": self.ppl}


def reference(
    scorer: Scorer,
    source: TokenStream | Split,
    seq_len: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
) -> Result:
    """MindFormers' PerplexityMetric on its evaluation blocks.

    The text is cut into blocks of L tokens that do not overlap, of which L - 1 are scored; the tail is dropped. The
    loss is the unweighted mean over batches of each batch's mean over tokens.

    Args:
        scorer: created with the batch size B.
        source: text, or the unchanged rows of MindRecord files.
        seq_len: L.
        track: shows progress.
        replicas: share the batches.
    """
    if isinstance(source, Split):
        blocks, num_blocks, dropped = _rows(source, scorer.batch_size), source.num_blocks, 0
    else:
        num_blocks, dropped = divmod(source.num_tokens, seq_len)
        blocks = islice(windows(source, seq_len, seq_len), num_blocks)
    means, scores, total, count = [], [], 0.0, 0
    for nll, counts, _ in _score(scorer, track(blocks, num_blocks), seq_len, replicas):
        means.append(nll.sum() / counts.sum())
        scores.append((nll / counts.sum(), counts / counts.sum()))
        total, count = total + float(nll.sum()), count + int(counts.sum())
    total, count = replicas.total(total), int(replicas.total(count))
    loss = replicas.total(float(np.sum(means))) / replicas.total(len(means))
    return Result(
        "reference", loss, perplexity(loss), "token", count, count, num_blocks, dropped, total, seq_len, seq_len,
        _gathered(scores, scorer, replicas),
    )  # fmt: skip


def strided(
    scorer: Scorer,
    stream: TokenStream,
    seq_len: int,
    stride: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
) -> Result:
    """Hugging Face's loop (transformers, "Perplexity of fixed-length models").

    Windows of L tokens begin `stride` tokens apart. Each scores the tokens that were in no window before, except the
    stream's first token. The loss weights the mean of each window by the number of its new tokens minus one, as that
    loop does: correct for the first window, whose first token has no prediction, one too few for the others.
    """
    scores, total, weighted, weights, count = [], 0.0, 0.0, 0, 0
    number = num_windows(stream.num_tokens, seq_len, stride)
    for nll, counts, num_new in _score(scorer, track(windows(stream, seq_len, stride), number), seq_len, replicas):
        scores.append((nll / np.maximum(counts, 1) * (num_new - 1), num_new - 1))
        weighted += float(scores[-1][0].sum())
        weights += int((num_new - 1).sum())
        total, count = total + float(nll.sum()), count + int(counts.sum())
    total, count = replicas.total(total), int(replicas.total(count))
    loss = replicas.total(weighted) / replicas.total(weights)
    return Result(
        "strided", loss, perplexity(loss), "token", count, count, number, 0, total, seq_len, stride,
        _gathered(scores, scorer, replicas),
    )  # fmt: skip


def word(
    scorer: Scorer,
    stream: TokenStream,
    seq_len: int,
    stride: int,
    eos_id: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
) -> Result:
    """Return the nll of the whole text, divided by its number of words (WikiText: Merity et al., arXiv:1609.07843).

    Every token is scored once, the first one after an EOS, in windows like those of `strided` that overlap by at least
    one token. Words are counted in the text, so that the result does not depend on the tokenizer.
    """
    stride = min(stride, seq_len - 1)
    scores, total, count = [], 0.0, 0
    parts = chain([np.array([eos_id], np.int32)], stream)
    number = num_windows(stream.num_tokens + 1, seq_len, stride)
    for nll, counts, _ in _score(scorer, track(windows(parts, seq_len, stride), number), seq_len, replicas):
        scores.append((nll, counts))
        total, count = total + float(nll.sum()), count + int(counts.sum())
    total, count = replicas.total(total), int(replicas.total(count))
    num_words, unit = stream.words
    loss = total / num_words
    window_scores = _gathered(scores, scorer, replicas)
    return Result(
        "word", loss, perplexity(loss), unit, num_words, count, number, 0, total, seq_len, stride,
        replace(window_scores, weight=window_scores.weight * (num_words / count)),  # words by share of tokens
    )  # fmt: skip


def _gathered(scores: list[tuple[np.ndarray, np.ndarray]], scorer: Scorer, replicas: ReplicaBatches) -> WindowScores:
    """Return the scores of all windows, in their order; `scores` has those of each batch of this replica."""
    nll, weight = (replicas.in_order([part[column] for part in scores], scorer.batch_size) for column in (0, 1))
    return WindowScores(nll, weight)


def _rows(split: Split, batch_size: int) -> Iterator[Window]:
    """Yield the rows of MindRecord files without their padding."""
    for batch in batches(split, batch_size=batch_size, seed=0, epoch=0, shuffle=False, drop_last=False):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            yield Window(ids[: mask.sum()], int(mask.sum()))


def _score(
    scorer: Scorer, windows: Iterable[Window], length: int, replicas: ReplicaBatches
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each batch of this replica, per window (R,): summed nll, number of tokens in the sum, `num_new`."""
    for batch in replicas.local(_batches(windows, scorer.batch_size)):
        ids = padded([window.ids for window in batch], length)  # (R, L)
        end = np.array([len(window.ids) for window in batch])
        num_new = np.array([window.num_new for window in batch])
        position = np.arange(1, length)  # of the token that a column scores; token 0 has no prediction
        is_counted = (position >= (end - num_new)[:, None]) & (position < end[:, None])  # (R, L - 1)
        nll = np.where(is_counted, scorer.score(ids), 0.0)
        yield nll.sum(axis=1), is_counted.sum(axis=1), num_new


def _batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    windows = iter(windows)
    while batch := list(islice(windows, batch_size)):
        yield batch
