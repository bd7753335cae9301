"""Documents as streams of pieces, and their split into a training and a validation part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gpt2x.errors import UserError
from gpt2x.runtime import limits


class TextTooLongError(Exception):
    """A part of a text that is encoded at once would take too much memory and time."""


class Piece(NamedTuple):
    """A part of a document that fits into memory; a document may be a million pieces long.

    Pieces are cut only before a blank or newline that follows a visible character (`cut_position`).
    """

    text: str
    ends_document: bool


def cut_position(text: str) -> int:
    """Return the last index at which `text` may be cut without changing GPT-2's encoding; 0 if there is none.

    GPT-2's pre-tokenization starts a new word at every whitespace that follows a visible character, so the encoding of
    what is before such an index does not depend on what is after it. Only blank and newline count: Python and the
    tokenizer's regular expressions disagree about some rarer characters.
    """
    for position in range(len(text) - 1, 0, -1):
        if text[position] in " \n" and not text[position - 1].isspace():
            return position
    return 0


def pieces_of(chunks: Iterable[str]) -> Iterator[Piece]:
    """Yield the pieces of one document that arrives in chunks cut anywhere. A blank document has none.

    Raises:
        TextTooLongError: a part without a place to cut is longer than `limits.WORD_CHARS`.
    """
    rest: list[str] = []  # what has no place to cut yet
    visible, last, length = False, "", 0
    for chunk in filter(None, chunks):
        is_first = not visible
        visible = visible or not chunk.isspace()
        # of what has been looked at, the last character decides whether the chunk may begin a piece
        text = last + chunk if not is_first else "".join([*rest, chunk])
        position = cut_position(text) if visible else 0
        if position:
            yield Piece(text[:position] if is_first else "".join([*rest, chunk[: position - 1]]), False)
            rest = [text[position:]]
            length = len(rest[0])
        else:
            rest.append(chunk)
            length += len(chunk)
        if length > limits.WORD_CHARS:
            raise TextTooLongError(
                f"{length:,} characters without a blank or newline after a visible one, within which it cannot be cut; "
                f"at most {limits.WORD_CHARS:,} are read. Give a text with words or lines."
            )
        last = chunk[-1]
    if visible:
        yield Piece("".join(rest), True)


def document(text: str) -> Iterator[Piece]:
    """Yield one document that is in memory as one piece; a blank document has none."""
    if text and not text.isspace():
        yield Piece(text, True)


class SeededSplit:
    """Divides a stream of documents into `train` and `val`.

    Whole documents are drawn without replacement by the seed: round(val_fraction * documents) of them, by selection
    sampling (Knuth, The Art of Computer Programming, vol. 2, 3.4.2, algorithm S), which needs no list of them. If
    that is less than one document (a single text file, say), the text itself is cut: `val` is its last
    `val_fraction` of characters, from the next line boundary on.

    Args:
        read: Returns the same pieces on every call.
        val_fraction: Between 0 and 1.
        seed: The draw is a function of only the seed and the number of documents.
        key: What to name if there is no text, such as `dataset.path=notes.txt`.

    Raises:
        UserError: val_fraction is not between 0 and 1; later, if there is no text.
    """

    def __init__(self, read: Callable[[], Iterator[Piece]], val_fraction: float, seed: int, key: str) -> None:
        if not 0 < val_fraction < 1:
            raise UserError(f"dataset.val_fraction={val_fraction} must lie between 0 and 1, such as 0.1.")
        self._read, self._fraction, self._seed, self._key = read, val_fraction, seed, key

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Number of documents and characters. Reads everything once, which also checks every line."""
        documents = characters = 0
        for piece in self._read():
            documents += piece.ends_document
            characters += len(piece.text)
        if not documents:
            raise UserError(f"{self._key} has no text. Give a file with text in it.")
        return documents, characters

    @property
    def num_val_documents(self) -> int:
        """Number of whole documents drawn for validation; 0 if the text is cut instead."""
        documents = self._size[0]
        return round(self._fraction * documents) if self._fraction * documents >= 1 else 0

    @property
    def note(self) -> str:
        """How the text was divided, for the panel at the start of a run."""
        documents = self._size[0]
        if self.num_val_documents:
            return f"{self.num_val_documents} of {documents} documents drawn for validation (seed {self._seed})"
        return (
            f"{documents} document{'s' * (documents > 1)}, too few to draw from: the last {self._fraction:.0%} of the "
            f"text, from a line boundary on, is the validation part"
        )

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the pieces of `split` (train | val), in the order in which they are read."""
        if self.num_val_documents:
            return self._drawn(split)
        return self._cut(split)

    def _drawn(self, split: str) -> Iterator[Piece]:
        documents_left, draws_left = self._size[0], self.num_val_documents
        random = np.random.Generator(np.random.Philox(self._seed))
        is_val = None
        for piece in self._read():
            if is_val is None:
                is_val = random.random() * documents_left < draws_left
                documents_left, draws_left = documents_left - 1, draws_left - is_val
            if is_val == (split == "val"):
                yield piece
            if piece.ends_document:
                is_val = None

    def _cut(self, split: str) -> Iterator[Piece]:
        start = round((1 - self._fraction) * self._size[1])
        position, is_past_cut = 0, False
        for piece in self._read():
            text = piece.text
            if is_past_cut or position + len(text) <= start:
                if is_past_cut == (split == "val"):
                    yield piece
            else:
                at = _boundary(text, start - position)
                is_past_cut = True
                if split == "train" and at:
                    yield Piece(text[:at], True)
                elif split == "val" and at < len(text):
                    yield Piece(text[at:], piece.ends_document)
            position += len(text)


def _boundary(text: str, start: int) -> int:
    """Return the first line start at or after `start`, else the first blank, else `start` itself."""
    if start == 0:
        return 0
    newline = text.find("\n", start - 1)
    if newline >= 0:
        return newline + 1
    blank = text.find(" ", start)
    return blank if blank >= 0 else start
