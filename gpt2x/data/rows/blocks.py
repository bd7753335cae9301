"""Documents to blocks of ids (imports no mindspore). L is the number of columns of a row (`block_len`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gpt2x.data.sources.documents import Piece
from gpt2x.data.tokenizer import Tokenizer

BATCH_CHARS = 1 << 20  # encoded at once: some 60 MB of the tokenizer's memory
BATCH_PIECES = 4096


class Packer:
    """Cuts a stream of documents into blocks of L tokens, and counts.

    Args:
        tokenizer: Encodes the pieces.
        block_len: L.
        separate: True: EOS behind each document; consecutive blocks share one token, so that every token but the
            first is predicted exactly once; the last block is filled with EOS under attention_mask 0.
            False: one stream without EOS, blocks that share nothing, the tail dropped.

    Attributes:
        num_tokens: Tokens of the stream so far, EOS included.
        num_documents: Documents so far.
        dropped_tokens: Tokens at the end that filled no block; known at the end.
        seconds: Wall time of `blocks`, the consumer's share included; known at the end.
    """

    def __init__(self, tokenizer: Tokenizer, block_len: int, *, separate: bool) -> None:
        self._tokenizer, self._block_len, self._separate = tokenizer, block_len, separate
        self.num_tokens = self.num_documents = self.dropped_tokens = 0
        self.seconds = 0.0

    def blocks(
        self, pieces: Iterable[Piece], on_chars: Callable[[int], None] = lambda chars: None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and attention mask, int32 (rows, L) each; `on_chars` is told the characters just encoded."""
        started = time.perf_counter()
        length = self._block_len
        stride = length - 1 if self._separate else length
        rest = np.empty(0, np.int32)
        for ids in self.encode(pieces, on_chars):
            self.num_tokens += len(ids)
            rest = np.concatenate([rest, ids])
            rows = (len(rest) - (length - stride)) // stride
            if rows > 0:
                block = rest[np.arange(rows)[:, None] * stride + np.arange(length)]  # (rows, L)
                yield block, np.ones_like(block)
                rest = rest[rows * stride :]
        if not self._separate or self.num_tokens < length:
            self.dropped_tokens = len(rest)
        elif len(rest) > 1:  # a single token is the one shared with the block before
            block = np.full((1, length), self._tokenizer.eos_id, np.int32)
            block[0, : len(rest)] = rest
            yield block, (np.arange(length)[None] < len(rest)).astype(np.int32)
        self.seconds = time.perf_counter() - started

    def encode(
        self, pieces: Iterable[Piece], on_chars: Callable[[int], None] = lambda chars: None
    ) -> Iterator[np.ndarray]:
        """Yield the stream itself in parts of any length, int32 (tokens,)."""
        if not self._tokenizer.cuts_at_whitespace:
            pieces = _join(pieces, self._separate)
        for batch in _grouped(pieces):
            ids = self._tokenizer.encode_batch([piece.text for piece in batch])
            for piece, piece_ids in zip(batch, ids, strict=True):
                if piece.ends_document and self._separate:
                    piece_ids.append(self._tokenizer.eos_id)
                self.num_documents += piece.ends_document
            yield np.concatenate([np.asarray(i, np.int32) for i in ids])
            on_chars(sum(len(piece.text) for piece in batch))


def _grouped(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    chars = 0
    for piece in pieces:
        batch.append(piece)
        chars += len(piece.text)
        if chars >= BATCH_CHARS or len(batch) >= BATCH_PIECES:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _join(pieces: Iterable[Piece], separate: bool) -> Iterator[Piece]:
    """For a tokenizer that looks beyond whitespace: whole documents, or the whole text when nothing separates them."""
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends_document and separate:
            yield Piece("".join(parts), True)
            parts = []
    if parts:
        yield Piece("".join(parts), True)
