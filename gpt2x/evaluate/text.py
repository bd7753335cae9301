"""The text of a split as one stream of tokens, and its division into windows (imports no mindspore)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2x.config import DatasetConfig, EvaluationConfig, TokenizerConfig
from gpt2x.data.mindrecord import Split, find_records
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.blocks import Blocks, Packer
from gpt2x.data.sources.registry import open_corpus, source_of
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError


class TokenStream:
    """A split's documents as tokens, with EOS between documents where the corpus separates them.

    Iteration encodes the text anew and yields it in parts, so memory does not grow with the text. There is no EOS
    behind the last document: a single plain text file gives the tokens of its text and nothing else.

    Attributes:
        content_hash: sha256 of what the text is made from.
        form: the text's name for users, such as `wikitext2 clean`.
        notes: what a user should be told of the corpus.
    """

    def __init__(self, dataset: DatasetConfig, split: str, tokenizer: Tokenizer, cache: Path):
        self._corpus, self._split, self._tokenizer = open_corpus(dataset, cache), split, tokenizer
        if not self._corpus.has(split):
            raise UserError(
                f"evaluation.split={split}: dataset={dataset.name} has no {split} text; give dataset.{split}_path, "
                "or another evaluation.split"
            )
        self.form = f"{dataset.name} {dataset.protocol}" if len(source_of(dataset).protocols) > 1 else dataset.name
        self.content_hash = self._corpus.content_hash(split)
        self.notes = self._corpus.notes

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield ids, int32 (tokens,)."""
        separate = self._corpus.separate
        held: np.ndarray | None = None
        for ids in Packer(self._tokenizer, 2, separate=separate).encode(self._corpus.pieces(self._split)):
            if held is not None:
                yield held
            held = ids
        if held is not None:
            yield held[:-1] if separate else held

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of the stream; counting encodes the text once."""
        return sum(len(ids) for ids in self)

    @cached_property
    def words(self) -> tuple[int, str]:
        """How many words the text has, and whether they are the corpus' original ones or cut at whitespace."""
        original = self._corpus.num_words(self._split)
        if original is not None:
            return original, "original word"
        # pieces are cut before blanks only, so no word is counted twice
        return sum(len(piece.text.split()) for piece in self._corpus.pieces(self._split)), "word"


class Window(NamedTuple):
    """A stretch of the stream; `num_new` tokens at its end were in no window before."""

    ids: np.ndarray  # int32 (tokens,)
    num_new: int


def windows(parts: Iterable[np.ndarray], length: int, stride: int) -> Iterator[Window]:
    """Cut a stream into windows of `length` tokens, each beginning `stride` tokens behind the one before.

    The last window may be shorter; it ends where the stream ends.
    """
    rest, num_old = np.empty(0, np.int32), 0
    for part in parts:
        rest = np.concatenate([rest, part])
        while len(rest) >= length:
            yield Window(rest[:length], length - num_old)
            rest, num_old = rest[stride:], length - stride
    if len(rest) > num_old:
        yield Window(rest, len(rest) - num_old)


def num_windows(num_tokens: int, length: int, stride: int) -> int:
    """How many `windows` there are."""
    return min(num_tokens, 1) if num_tokens <= length else -(-(num_tokens - length) // stride) + 1


def open_texts(
    dataset: DatasetConfig, evaluation: EvaluationConfig, tokenizer: Tokenizer, cache: Path
) -> dict[str, TokenStream | Split]:
    """What each protocol of `evaluation` reads (its seq_len is set).

    Under `reference` WikiText-2 has MindFormers' text, under the others all of its text in the `clean` form, whatever
    dataset.protocol says: published numbers belong to these texts. MindRecord files hold blocks, not text, so only
    `reference` reads them.
    """
    protocols, split = evaluation.protocols, evaluation.split
    if find_records(dataset, (split,)):
        if set(protocols) != {"reference"}:
            raise UserError(
                f"evaluation.protocols=[{','.join(protocols)}]: MindRecord files hold blocks, but strided and word "
                "need text; use evaluation.protocols=[reference], or give dataset the text itself"
            )
        length = evaluation.seq_len
        assert length is not None
        form = Blocks(length - 1)  # rows of exactly `length` tokens
        data = prepare(dataset, TokenizerConfig(), form, cache=cache, checkpoint_tokenizer=tokenizer, splits=(split,))
        found = data.train if split == "train" else data.val
        assert found is not None
        return {"reference": found}
    if "reference" not in source_of(dataset).protocols:
        stream = TokenStream(dataset, split, tokenizer, cache)
        return dict.fromkeys(protocols, stream)
    texts = {form: replace(dataset, protocol=form) for form in ("reference", "clean")}
    streams = {form: TokenStream(text, split, tokenizer, cache) for form, text in texts.items()}
    return {protocol: streams["reference" if protocol == "reference" else "clean"] for protocol in protocols}
