"""Tokenizers with added tokens that several test files load."""

from __future__ import annotations

import shutil
from pathlib import Path

import tokenizers


def grown_tokenizer(source: Path, target: Path, tokens: tuple[str, ...]) -> Path:
    """`target`: the tokenizer directory `source` with more special tokens."""
    shutil.copytree(source, target)
    backend = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in tokens])
    backend.save(str(target / "tokenizer.json"))
    return target
