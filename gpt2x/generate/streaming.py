"""Text as its tokens arrive (imports no mindspore)."""

from __future__ import annotations

from gpt2x.data.tokenizer import Tokenizer

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
