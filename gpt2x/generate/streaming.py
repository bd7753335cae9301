"""Text as its tokens arrive, and texts that arrive side by side one after another (imports no mindspore)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Generic, Self, TypeVar

from gpt2x.data.tokenizer import Tokenizer

T = TypeVar("T")

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoding makes of bytes that form no character (yet)


class TextStream:
    """Decodes one token at a time; a character whose bytes are spread over tokens is given once it is complete.

    The pieces together equal the decoding of all tokens at once.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that `token` completes, often all of its own; empty while a character is open."""
        self._held.append(token)
        text = self._tokenizer.decode(self._held)
        if text.endswith(INCOMPLETE):
            return ""
        self._held = []
        return text

    def end(self) -> str:
        """What is still held: bytes that never became a character."""
        held, self._held = self._held, []
        return self._tokenizer.decode(held) if held else ""


class InputOrder(Generic[T]):
    """Hands on texts that come side by side one after another, in the order of their indices from 0.

    The first text that has not ended is handed on as it comes. What the others bring is held until their turn. When
    the block is left early, the texts that have ended are handed on all the same, the others left out.

    Args:
        on_text: gets (index, text), of one index after another.
        on_end: gets (index, result), after the text of that index.
    """

    def __init__(self, on_text: Callable[[int, str], None], on_end: Callable[[int, T], None]):
        self._on_text, self._on_end = on_text, on_end
        self._turn = 0
        self._texts: dict[int, str] = defaultdict(str)  # held
        self._results: dict[int, T] = {}  # held

    def text(self, index: int, text: str) -> None:
        """A piece of a text."""
        if index == self._turn:
            self._on_text(index, text)
        else:
            self._texts[index] += text

    def end(self, index: int, result: T) -> None:
        """The end of a text."""
        self._results[index] = result
        while self._turn in self._results:
            self._hand_on(self._turn)
            self._turn += 1
            if self._turn in self._texts:
                self._on_text(self._turn, self._texts.pop(self._turn))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        for index in sorted(self._results):
            self._hand_on(index)

    def _hand_on(self, index: int) -> None:
        if index in self._texts:
            self._on_text(index, self._texts.pop(index))
        self._on_end(index, self._results.pop(index))
