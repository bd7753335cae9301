"""The text of a split as one stream of tokens, and the windows cut from it (imports no mindspore)."""

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
    """The documents of a split as tokens, with EOS between documents if the corpus separates them.

    Each iteration encodes the text again and yields it in parts, so that memory does not grow with the text. There is
    no EOS after the last document: a single plain text file gives the tokens of its text and nothing else.

    Attributes:
        content_hash: sha256 of the text's source.
        form: name of the text for users, such as `wikitext2 clean`.
    """

    def __init__(self, dataset: DatasetConfig, split: str, tokenizer: Tokenizer, cache: Path):
        self._corpus, self._split, self._tokenizer = open_corpus(dataset, cache), split, tokenizer
        if not self._corpus.has(split):
            raise UserError(
                f"evaluation.split={split}: dataset={dataset.name} has no {split} text; give dataset.{split}_path, "
                "or a different evaluation.split."
            )
        self.form = f"{dataset.name} {dataset.protocol}" if len(source_of(dataset).protocols) > 1 else dataset.name
        self.content_hash = self._corpus.content_hash(split)

    @property
    def notes(self) -> list[str]:
        """What a user should know about the corpus and the tokenizer, and what has been left out so far."""
        loss = [self._tokenizer.note_of_loss] if self._tokenizer.loss else []
        return [*self._corpus.notes, *self._corpus.reading_notes, *loss]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield ids, int32 (tokens,)."""
        separate = self._corpus.separate
        previous: np.ndarray | None = None
        for ids in Packer(self._tokenizer, 2, separate=separate).encode(self._corpus.pieces(self._split)):
            if previous is not None:
                yield previous
            previous = ids
        if previous is not None:
            yield previous[:-1] if separate else previous

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens of the stream; counting encodes the text once."""
        return sum(len(ids) for ids in self)

    @cached_property
    def words(self) -> tuple[int, str]:
        """Number of words of the text, and whether they are the original words of the corpus or cut at whitespace."""
        original = self._corpus.num_words(self._split)
        if original is not None:
            return original, "original word"
        # pieces are cut only before blanks, so no word is counted twice
        return sum(len(piece.text.split()) for piece in self._corpus.pieces(self._split)), "word"


class Window(NamedTuple):
    """Consecutive tokens of the stream; the last `num_new` of them were in no window before."""

    ids: np.ndarray  # int32 (tokens,)
    num_new: int


def windows(parts: Iterable[np.ndarray], length: int, stride: int) -> Iterator[Window]:
    """Cut a stream into windows of `length` tokens, each beginning `stride` tokens after the previous one.

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
    """Return the number of `windows`."""
    return min(num_tokens, 1) if num_tokens <= length else -(-(num_tokens - length) // stride) + 1


def open_texts(
    dataset: DatasetConfig, evaluation: EvaluationConfig, tokenizer: Tokenizer, cache: Path
) -> dict[str, TokenStream | Split]:
    """Return what each protocol of `evaluation` reads; its seq_len is not null.

    For `reference`, WikiText-2 is MindFormers' text; for the other protocols, it is the whole text in the `clean` form.
    dataset.protocol does not change this, since published numbers belong to these texts. MindRecord files hold blocks,
    not text, so only `reference` reads them.

    Raises:
        UserError: MindRecord files for a protocol that needs text, or a split without text.
    """
    protocols, split = evaluation.protocols, evaluation.split
    if find_records(dataset, (split,)):
        if set(protocols) != {"reference"}:
            raise UserError(
                f"evaluation.protocols=[{','.join(protocols)}]: MindRecord files hold blocks, but strided and word "
                "need text; use evaluation.protocols=[reference], or give dataset the text itself."
            )
        length = evaluation.seq_len
        assert length is not None
        form = Blocks(length)  # rows of `length` tokens, as the reference writes them, or of one more
        data = prepare(dataset, TokenizerConfig(), form, cache=cache, checkpoint_tokenizer=tokenizer, splits=(split,))
        blocks = data.train if split == "train" else data.val
        assert blocks is not None
        return {"reference": blocks}
    if "reference" not in source_of(dataset).protocols:
        stream = TokenStream(dataset, split, tokenizer, cache)
        return dict.fromkeys(protocols, stream)
    texts = {form: replace(dataset, protocol=form) for form in ("reference", "clean")}
    streams = {form: TokenStream(text, split, tokenizer, cache) for form, text in texts.items()}
    return {protocol: streams["reference" if protocol == "reference" else "clean"] for protocol in protocols}
