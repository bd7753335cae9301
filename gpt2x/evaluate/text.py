"""The text of a split as one stream of tokens, and its division into windows (imports no mindspore)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.data.corpora import open_corpus
from gpt2x.data.packing import Packer
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError


class TokenStream:
    """A split's documents as tokens, with EOS between documents where the corpus separates them.

    Iteration encodes the text anew and yields it in parts, so memory does not grow with the text. There is no EOS
    behind the last document: a single plain text file gives the tokens of its text and nothing else.

    Attributes:
        content_hash: sha256 of what the text is made from.
        notes: what a user should be told of the corpus.
    """

    def __init__(self, dataset: DatasetConfig, split: str, tokenizer: Tokenizer, cache: Path):
        self._corpus, self._split, self._tokenizer = open_corpus(dataset, cache), split, tokenizer
        if not self._corpus.has(split):
            raise UserError(
                f"evaluation.split={split}: dataset={dataset.name} has no {split} text; give dataset.{split}_path, "
                "or another evaluation.split"
            )
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
        """How many words the text has, and what a word is."""
        original = self._corpus.num_words(self._split)
        if original is not None:
            return original, "original word"
        # pieces are cut before blanks only, so no word is counted twice
        return sum(len(piece.text.split()) for piece in self._corpus.pieces(self._split)), "whitespace-separated word"


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
