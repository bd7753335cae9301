"""A tokenizer's files: which there are, copying them, and the id of the end-of-text token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gpt2x.convert.directories import read_json
from gpt2x.data.template import FILE as TEMPLATE_FILE
from gpt2x.data.tokenizer import DEFAULT_EOS, declared_eos

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")


def has_tokenizer(directory: Path) -> bool:
    """Return whether `directory` has tokenizer.json, or vocab.json with merges.txt."""
    return (directory / "tokenizer.json").is_file() or all(
        (directory / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, as many of the five as there are, and the template of prompts.

    config.json is not copied. So an end-of-text token that only config.json names is written into
    tokenizer_config.json.
    """
    for name in (*TOKENIZER_FILES, TEMPLATE_FILE):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    token = declared_eos(source, _tokens(source).get)
    if token is not None and declared_eos(target, lambda _: None) is None:
        file = target / "tokenizer_config.json"
        content = (read_json(file) if file.is_file() else {"tokenizer_class": "GPT2Tokenizer"}) | {"eos_token": token}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_eos_id(directory: Path) -> int | None:
    """Return the id of the end-of-text token, by the rule of `Tokenizer.load`; None if the vocabulary lacks it.

    Raises:
        UserError: one of the files is not JSON.
    """
    tokens = _tokens(directory)
    eos = declared_eos(directory, tokens.get) or DEFAULT_EOS
    return next((i for i, token in tokens.items() if token == eos), None)


def _tokens(directory: Path) -> dict[int, str]:
    """Return id -> token of a tokenizer of any kind."""
    if (directory / "tokenizer.json").is_file():
        tokenizer = read_json(directory / "tokenizer.json")
        vocabulary = tokenizer.get("model", {}).get("vocab", {})
        # Unigram tokenizers have a list of (token, score)
        tokens = (
            {i: token for token, i in vocabulary.items()}
            if isinstance(vocabulary, dict)
            else {i: token for i, (token, _) in enumerate(vocabulary)}
        )
        return tokens | {entry["id"]: entry["content"] for entry in tokenizer.get("added_tokens") or []}
    return {i: token for token, i in read_json(directory / "vocab.json").items()}
