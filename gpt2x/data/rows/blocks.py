"""Documents as blocks of L = seq_len + 1 token ids: inputs are a block's first seq_len tokens, targets its last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gpt2x.data.mindrecord import RecordFiles, RowArrays, Split, scan_rows
from gpt2x.data.reading.documents import Piece
from gpt2x.data.rows.base import Counts, Part, RowForm
from gpt2x.data.sampling import Batch
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError

BATCH_CHARS = 1 << 20  # encoded at once: some 60 MB of the tokenizer's memory
BATCH_PIECES = 4096


@dataclass(frozen=True)
class Blocks(RowForm):
    """Blocks of a stream of documents, for language modeling. `labels` equal `input_ids`; the task shifts.

    Raises:
        UserError: seq_len is below 1.
    """

    noun = "text"
    description = "gpt2x language model blocks"
    has_full_rows = True

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise UserError(
                f"seq_len={self.seq_len} is too short: a block needs at least two tokens. Give seq_len=2 or more."
            )

    @property
    def row_len(self) -> int:
        """Number of columns of a row."""
        return self.seq_len + 1

    def cut(self, part: Part, counts: Counts, on_chars: Callable[[int], None]) -> Iterator[RowArrays]:
        """Yield the blocks of a part; see `Packer` for how documents are joined."""
        packer = Packer(part.tokenizer, self.row_len, separate=part.source.separate)
        for ids, mask in packer.blocks(part.source.pieces(part.split), on_chars):
            yield ids, mask, ids
        if packer.num_tokens < self.row_len:
            name = part.source.config.name
            raise UserError(
                f"The {part.split} part of dataset={name} has {packer.num_tokens} tokens, fewer than one block of "
                f"{self.row_len} (seq_len={self.seq_len} needs seq_len + 1). Give more text or a shorter seq_len"
                f"{', or a larger dataset.val_fraction' if part.split == 'val' else ''}."
            )
        counts.tokens, counts.documents = packer.num_tokens - packer.dropped_tokens, packer.num_documents
        counts.dropped_tokens = packer.dropped_tokens

    def open(self, records: RecordFiles, tokenizer: Tokenizer, labels: tuple[str, ...]) -> Split:
        """Check blocks written elsewhere (about 11,000 rows of 1025 tokens per second).

        All rows have seq_len + 1 tokens, as the reference's for training, or all have seq_len, as the reference's for
        evaluation; the latter have one target less (`with_all_columns`).

        Raises:
            UserError: Missing or damaged files, other columns, rows of another length, ids outside the vocabulary, or
                labels that are not input_ids.
        """
        lengths: list[int] = []  # of the first row, if it has one of the two

        def fault_of(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray) -> str:
            if not lengths:
                lengths.append(self.seq_len if ids.size == self.seq_len else self.row_len)
            return block_fault(ids, mask, labels, lengths[0], tokenizer.vocab_size)

        scan = scan_rows(records, fault_of)
        return Split(tuple(records.files), scan.num_rows, lengths[0], scan.num_tokens, 0, 0, None, scan.sha256)


def with_all_columns(batch: Batch, seq_len: int) -> Batch:
    """Return a batch of blocks with seq_len + 1 columns: one of seq_len columns gets another, under attention_mask 0.

    The new column is no input, and the mask says that it is no target.
    """
    if batch["input_ids"].shape[1] != seq_len:
        return batch
    return {name: np.pad(values, ((0, 0), (0, 1))) for name, values in batch.items()}


def block_fault(ids: np.ndarray, mask: np.ndarray, labels: np.ndarray, row_len: int, vocab_size: int) -> str:
    """Return what is wrong with a row (ids, mask, labels: (L,)) and the fix; empty if nothing is wrong."""
    if ids.shape != (row_len,) or mask.shape != ids.shape or labels.shape != ids.shape:
        return (
            f"{ids.size} tokens, but a block of {row_len} is needed (seq_len + 1, or seq_len for all rows). "
            f"Set trainer.seq_len={ids.size - 1} (evaluation.seq_len for evaluate.py), or prepare the text again."
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        return (
            f"token id {high if high >= vocab_size else low}, outside the vocabulary of {vocab_size}. "
            "Use the tokenizer that the file was written with (tokenizer.path)."
        )
    differing = np.flatnonzero((labels != ids) & (mask != 0))
    if differing.size:
        position = differing[0]
        return (
            f"labels that are not its input_ids (at position {position}: {labels[position]}, not {ids[position]}). "
            "gpt2x itself shifts labels and trains on every token that attention_mask covers, so shifted labels, or "
            "labels of -100, would be ignored. Write labels equal to input_ids, with attention_mask 0 for tokens that "
            "are not to be learnt."
        )
    return ""


class Packer:
    """Cuts a stream of documents into blocks of L tokens, and counts.

    Args:
        tokenizer: Encodes the pieces.
        block_len: L.
        separate: True: EOS after each document; consecutive blocks share one token, so that every token but the
            first is predicted exactly once; the last block is filled with EOS under attention_mask 0.
            False: one stream without EOS; blocks share nothing; the tail is dropped.

    Attributes:
        num_tokens: Tokens of the stream so far, EOS included.
        num_documents: Documents so far.
        dropped_tokens: Tokens at the end that filled no block; set after the last block.
    """

    def __init__(self, tokenizer: Tokenizer, block_len: int, *, separate: bool) -> None:
        self._tokenizer, self._block_len, self._separate = tokenizer, block_len, separate
        self.num_tokens = self.num_documents = self.dropped_tokens = 0

    def blocks(
        self, pieces: Iterable[Piece], on_chars: Callable[[int], None] = lambda chars: None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and attention mask, int32 (rows, L) each.

        Args:
            pieces: The documents.
            on_chars: Called with the number of characters just encoded.
        """
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
    """Join pieces, for a tokenizer that looks beyond whitespace, to documents, or to one text without separators."""
    parts: list[str] = []
    for piece in pieces:
        parts.append(piece.text)
        if piece.ends_document and separate:
            yield Piece("".join(parts), True)
            parts = []
    if parts:
        yield Piece("".join(parts), True)


FORM = Blocks
