"""Documents as streams of pieces, and their split into training and validation part (imports no mindspore)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gpt2x.errors import UserError


class Piece(NamedTuple):
    """A part of a document, small enough to be held in memory; a document may be a million pieces long.

    Pieces are cut only before a blank or newline that follows a visible character (`cut_position`).
    """

    text: str
    ends_document: bool


def cut_position(text: str) -> int:
    """The last place where `text` may be cut without changing GPT-2's encoding; 0 when there is none.

    GPT-2's pre-tokenization starts a new word at every whitespace that follows a visible character, so nothing before
    that place looks at anything behind it. Only blank and newline count: Python and the tokenizer's regular
    expressions differ about some rarer characters.
    """
    for position in range(len(text) - 1, 0, -1):
        if text[position] in " \n" and not text[position - 1].isspace():
            return position
    return 0


def pieces_of(chunks: Iterable[str]) -> Iterator[Piece]:
    """One document, given as text chunks cut anywhere, as pieces. A blank document gives none."""
    rest, visible = "", False
    for chunk in chunks:
        visible = visible or not chunk.isspace()
        rest += chunk
        if visible and (position := cut_position(rest)):
            yield Piece(rest[:position], False)
            rest = rest[position:]
    if visible:
        yield Piece(rest, True)


def document(text: str) -> Iterator[Piece]:
    """One document that is in memory; a blank one gives nothing."""
    if text and not text.isspace():
        yield Piece(text, True)


class SeededSplit:
    """Divides a stream of documents into `train` and `val`.

    Whole documents are drawn without replacement by the seed: round(val_fraction * documents) of them, by selection
    sampling (Knuth, The Art of Computer Programming, vol. 2, 3.4.2, algorithm S), which needs no list of them. Where
    that would be less than one document (a single text file, say), the text itself is cut: `val` is its last
    `val_fraction` of characters, from the next line boundary on.

    Args:
        read: Gives the same pieces on every call.
        val_fraction: Between 0 and 1.
        seed: The draw is a function of it and of the number of documents alone.
        key: What to name when there is no text, such as `dataset.path=notes.txt`.
    """

    def __init__(self, read: Callable[[], Iterator[Piece]], val_fraction: float, seed: int, key: str) -> None:
        if not 0 < val_fraction < 1:
            raise UserError(f"dataset.val_fraction={val_fraction} must lie between 0 and 1, such as 0.1.")
        self._read, self._fraction, self._seed, self._key = read, val_fraction, seed, key

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Documents and characters; reads everything once, which also checks every line."""
        documents = characters = 0
        for piece in self._read():
            documents += piece.ends_document
            characters += len(piece.text)
        if not documents:
            raise UserError(f"{self._key} holds no text: the file is empty. Give a file with text in it.")
        return documents, characters

    @property
    def num_val_documents(self) -> int:
        """Whole documents drawn for validation; 0 when the text is cut instead."""
        documents = self._size[0]
        return round(self._fraction * documents) if self._fraction * documents >= 1 else 0

    @property
    def note(self) -> str:
        """What was done, for the panel at the start of a run."""
        documents = self._size[0]
        if self.num_val_documents:
            return f"{self.num_val_documents} of {documents} documents drawn for validation (seed {self._seed})"
        return (
            f"{documents} document{'s' * (documents > 1)}, too few to draw from: the last {self._fraction:.0%} of the "
            f"text, from a line boundary on, is the validation part"
        )

    def pieces(self, split: str) -> Iterator[Piece]:
        """The pieces of `split` (train | val), in the order they are read."""
        if self.num_val_documents:
            return self._drawn(split)
        return self._cut(split)

    def _drawn(self, split: str) -> Iterator[Piece]:
        left, wanted = self._size[0], self.num_val_documents
        random = np.random.Generator(np.random.Philox(self._seed))
        is_val = None
        for piece in self._read():
            if is_val is None:
                is_val = random.random() * left < wanted
                left, wanted = left - 1, wanted - is_val
            if is_val == (split == "val"):
                yield piece
            if piece.ends_document:
                is_val = None

    def _cut(self, split: str) -> Iterator[Piece]:
        start = round((1 - self._fraction) * self._size[1])
        position, behind = 0, False
        for piece in self._read():
            text = piece.text
            if behind or position + len(text) <= start:
                if behind == (split == "val"):
                    yield piece
            else:
                at = _boundary(text, start - position)
                behind = True
                if split == "train" and at:
                    yield Piece(text[:at], True)
                elif split == "val" and at < len(text):
                    yield Piece(text[at:], piece.ends_document)
            position += len(text)


def _boundary(text: str, start: int) -> int:
    """The first line start at or after `start`, else the first blank, else `start` itself."""
    if start == 0:
        return 0
    newline = text.find("\n", start - 1)
    if newline >= 0:
        return newline + 1
    blank = text.find(" ", start)
    return blank if blank >= 0 else start
