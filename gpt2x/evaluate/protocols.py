"""Three ways to state a perplexity (docs/evaluation.md says what each is comparable with).

All of them score windows of one length in batches of one size, so that one graph serves them. `replicas` divides the
batches among replicas; every process returns the same result.
Legend: B batch, R <= B rows of a batch, L window length (`seq_len`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np

from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import batches
from gpt2x.evaluate.bootstrap import WindowScores
from gpt2x.evaluate.scoring import Scorer, padded
from gpt2x.evaluate.text import TokenStream, Window, num_windows, windows
from gpt2x.parallel.replica_batches import ALONE, ReplicaBatches, exact_sum
from gpt2x.tracking.units import bits_per_byte, perplexity

Track = Callable[[Iterable[Window], int], Iterable[Window]]  # shows progress; gets their number


@dataclass(frozen=True)
class Result:
    """A perplexity and what it counts."""

    protocol: str
    loss: float  # nats per unit
    ppl: float  # exp(loss)
    unit: str  # what the loss is a mean over
    num_units: int
    num_tokens: int  # tokens scored, each once
    num_windows: int
    dropped_tokens: int  # tokens at the end of the text that are in no window
    total_nll: float  # nats, sum over the tokens scored
    token_loss: float  # nats per token scored, each with the same weight
    token_ppl: float  # exp(token_loss)
    num_bytes: int | None  # of the text of the tokens scored; None: not known
    bits_per_byte: float | None
    seq_len: int
    stride: int
    scores: WindowScores = field(compare=False, repr=False)  # their loss is `loss`, except for rounding

    @property
    def metrics(self) -> dict[str, float]:
        """The values that evaluations compare, and bits per byte if they are known."""
        bits = {} if self.bits_per_byte is None else {"bits_per_byte": self.bits_per_byte}
        return {"loss": self.loss, "ppl": self.ppl, **bits}


class Scored(NamedTuple):
    """A batch of R windows, (R,) each: summed nll, tokens in the sum, `Window.num_new`, bytes of these tokens."""

    nll: np.ndarray
    counts: np.ndarray
    num_new: np.ndarray
    num_bytes: np.ndarray


class Summary(NamedTuple):
    """The windows of all replicas.

    Attributes:
        scores: of all windows, in their order.
        facts: the entries of a `Result` that are sums over the tokens scored.
    """

    scores: WindowScores
    facts: dict[str, Any]


def reference(
    scorer: Scorer,
    source: TokenStream | Split,
    seq_len: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
    token_bytes: np.ndarray | None = None,
) -> Result:
    """MindFormers' PerplexityMetric on its evaluation blocks.

    The text is cut into blocks of L tokens that do not overlap, of which L - 1 are scored; the tail is dropped. The
    loss is the unweighted mean over batches of each batch's mean over tokens; `token_loss` is the mean over tokens.

    Args:
        scorer: created with the batch size B.
        source: text, or the unchanged rows of MindRecord files: of L tokens, or of L + 1, of which L are scored.
        seq_len: L.
        track: shows progress.
        replicas: share the batches.
        token_bytes: bytes of each id's text, for bits per byte.
    """
    length = seq_len
    if isinstance(source, Split):
        blocks, num_blocks, dropped = _rows(source, scorer.batch_size), source.num_blocks, 0
        length = source.block_len
    else:
        num_blocks, dropped = divmod(source.num_tokens, seq_len)
        blocks = islice(windows(source, seq_len, seq_len), num_blocks)
    scored = _score(scorer, track(blocks, num_blocks), length, replicas, token_bytes)
    means = [exact_sum(batch.nll) / batch.counts.sum() for batch in scored]
    weights = [(batch.nll / batch.counts.sum(), batch.counts / batch.counts.sum()) for batch in scored]
    summary = _summary(scored, weights, scorer, replicas, token_bytes is not None)
    num_batches = int(replicas.total(len(means)))
    loss = replicas.total(means) / num_batches
    return Result(
        "reference", loss, perplexity(loss), "batch", num_batches, num_windows=num_blocks, dropped_tokens=dropped,
        seq_len=seq_len, stride=seq_len, scores=summary.scores, **summary.facts,
    )  # fmt: skip


def strided(
    scorer: Scorer,
    stream: TokenStream,
    seq_len: int,
    stride: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
    token_bytes: np.ndarray | None = None,
) -> Result:
    """Hugging Face's loop (transformers, "Perplexity of fixed-length models").

    Windows of L tokens begin `stride` tokens apart. Each scores the tokens that were in no window before, except the
    stream's first token. The loss weights the mean of each window by the number of its new tokens minus one, as that
    loop does: correct for the first window, whose first token has no prediction, one too few for the others.
    """
    number = num_windows(stream.num_tokens, seq_len, stride)
    scored = _score(scorer, track(windows(stream, seq_len, stride), number), seq_len, replicas, token_bytes)
    weighted = [(batch.nll / np.maximum(batch.counts, 1) * (batch.num_new - 1), batch.num_new - 1) for batch in scored]
    summary = _summary(scored, weighted, scorer, replicas, token_bytes is not None)
    loss = exact_sum(summary.scores.nll) / exact_sum(summary.scores.weight)
    return Result(
        "strided", loss, perplexity(loss), "token", summary.facts["num_tokens"], num_windows=number, dropped_tokens=0,
        seq_len=seq_len, stride=stride, scores=summary.scores, **summary.facts,
    )  # fmt: skip


def word(
    scorer: Scorer,
    stream: TokenStream,
    seq_len: int,
    stride: int,
    prefix_id: int,
    track: Track = lambda windows, total: windows,
    replicas: ReplicaBatches = ALONE,
    token_bytes: np.ndarray | None = None,
) -> Result:
    """Return the nll of the whole text, divided by its number of words (WikiText: Merity et al., arXiv:1609.07843).

    Every token is scored once, the first one after BOS, in windows like those of `strided` that overlap by at least
    one token. Words are counted in the text, so that the result does not depend on the tokenizer.
    """
    stride = min(stride, seq_len - 1)
    parts = chain([np.array([prefix_id], np.int32)], stream)
    number = num_windows(stream.num_tokens + 1, seq_len, stride)
    scored = _score(scorer, track(windows(parts, seq_len, stride), number), seq_len, replicas, token_bytes)
    weights = [(batch.nll, batch.counts) for batch in scored]
    summary = _summary(scored, weights, scorer, replicas, token_bytes is not None)
    num_words, unit = stream.words
    loss = summary.facts["total_nll"] / num_words
    share = num_words / summary.facts["num_tokens"]  # words by share of tokens
    return Result(
        "word", loss, perplexity(loss), unit, num_words, num_windows=number, dropped_tokens=0, seq_len=seq_len,
        stride=stride, scores=replace(summary.scores, weight=summary.scores.weight * share), **summary.facts,
    )  # fmt: skip


def _summary(
    scored: Sequence[Scored], weighted: list[tuple[np.ndarray, np.ndarray]], scorer: Scorer, replicas: ReplicaBatches,
    knows_bytes: bool,
) -> Summary:  # fmt: skip
    """Bring the windows of all replicas together; sums do not depend on batches or replicas.

    Args:
        scored: this replica's batches.
        weighted: of each batch: nll and weight of its windows, as `WindowScores` has them.
        scorer: created with the batch size.
        replicas: which share the batches.
        knows_bytes: whether `scored` has the bytes.
    """
    nll, weight = (replicas.in_order([part[column] for part in weighted], scorer.batch_size) for column in (0, 1))
    total = replicas.total(_joined([batch.nll for batch in scored]))
    num_tokens = int(replicas.total(_joined([batch.counts for batch in scored])))
    num_bytes = int(replicas.total(_joined([batch.num_bytes for batch in scored])))
    bits = bits_per_byte(total, num_bytes) if knows_bytes and num_bytes else None
    facts = {
        "num_tokens": num_tokens,
        "total_nll": total,
        "token_loss": total / num_tokens,
        "token_ppl": perplexity(total / num_tokens),
        "num_bytes": num_bytes if knows_bytes else None,
        "bits_per_byte": bits,
    }
    return Summary(WindowScores(nll, weight), facts)


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0), *parts])


def _rows(split: Split, batch_size: int) -> Iterator[Window]:
    """Yield the rows of MindRecord files without their padding."""
    for batch in batches(split, batch_size=batch_size, seed=0, epoch=0, shuffle=False, drop_last=False):
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            yield Window(ids[mask != 0], int((mask != 0).sum()))


def _score(
    scorer: Scorer, windows: Iterable[Window], length: int, replicas: ReplicaBatches, token_bytes: np.ndarray | None
) -> list[Scored]:
    """Return the batches of this replica."""
    scored = []
    for batch in replicas.local(_batches(windows, scorer.batch_size)):
        ids = padded([window.ids for window in batch], length)  # (R, L)
        end = np.array([len(window.ids) for window in batch])
        num_new = np.array([window.num_new for window in batch])
        position = np.arange(1, length)  # of the token that a column scores; token 0 has no prediction
        is_counted = (position >= (end - num_new)[:, None]) & (position < end[:, None])  # (R, L - 1)
        nll = np.where(is_counted, scorer.score(ids), 0.0)
        num_bytes = np.zeros(len(batch)) if token_bytes is None else (token_bytes[ids[:, 1:]] * is_counted).sum(axis=1)
        scored.append(Scored(nll.sum(axis=1), is_counted.sum(axis=1), num_new, num_bytes))
    return scored


def _batches(windows: Iterable[Window], batch_size: int) -> Iterator[list[Window]]:
    windows = iter(windows)
    while batch := list(islice(windows, batch_size)):
        yield batch
