"""Decoding with a key/value cache."""

from gpt2x.generate.completion import Completion, Generator

__all__ = ["Completion", "Generator"]
