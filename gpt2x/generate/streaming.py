"""Text as its tokens arrive, and texts that arrive at the same time put in order (imports no mindspore)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Generic, Self, TypeVar

from gpt2x.data.tokenizer import Tokenizer

T = TypeVar("T")

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding returns for bytes that form no character (yet)


class TextStream:
    """Decodes one token at a time; a character whose bytes are spread over tokens is returned when it is complete.

    The pieces together equal the decoding of all tokens at once. The text of a token may depend on the token before it,
    such as the blank between two words of WordPiece; so each piece is what the decoding of both has beyond the first.

    Args:
        tokenizer: decodes.
        context: ids before the first token. In byte-level BPE they change nothing, and are not decoded.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._previous: list[int] = [] if tokenizer.is_byte_level else list(context[-1:])
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that `token` completes; empty while a character is incomplete."""
        self._pending.append(token)
        text = self._text()
        if text.endswith(INCOMPLETE):
            return ""
        self._previous, self._pending = [] if self._tokenizer.is_byte_level else self._pending, []
        return text

    def end(self) -> str:
        """Return the text of the pending tokens, whose bytes never became a character."""
        text = self._text() if self._pending else ""
        self._pending = []
        return text

    def _text(self) -> str:
        before = self._tokenizer.decode(self._previous) if self._previous else ""
        return self._tokenizer.decode([*self._previous, *self._pending])[len(before) :]


class InputOrder(Generic[T]):
    """Passes on texts that arrive at the same time in the order of their indices from 0.

    The first text that has not ended is passed on as it arrives. Pieces of the others wait for their turn. If the block
    is left early, the texts that have ended are still passed on; the others are left out.

    Args:
        on_text: called with (index, text), one index after the other.
        on_end: called with (index, result), after the text of that index.
    """

    def __init__(self, on_text: Callable[[int, str], None], on_end: Callable[[int, T], None]):
        self._on_text, self._on_end = on_text, on_end
        self._turn = 0
        self._texts: dict[int, str] = defaultdict(str)  # waiting
        self._results: dict[int, T] = {}  # waiting

    def text(self, index: int, text: str) -> None:
        """Receive a piece of a text."""
        if index == self._turn:
            self._on_text(index, text)
        else:
            self._texts[index] += text

    def end(self, index: int, result: T) -> None:
        """Receive the end of a text."""
        self._results[index] = result
        while self._turn in self._results:
            self._pass_on(self._turn)
            self._turn += 1
            if self._turn in self._texts:
                self._on_text(self._turn, self._texts.pop(self._turn))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        for index in sorted(self._results):
            self._pass_on(index)

    def _pass_on(self, index: int) -> None:
        if index in self._texts:
            self._on_text(index, self._texts.pop(index))
        self._on_end(index, self._results.pop(index))
