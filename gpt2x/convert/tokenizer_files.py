"""A tokenizer's files: which there are, copying them, and the ids of its special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gpt2x.convert.directories import read_json
from gpt2x.data.template import FILE as TEMPLATE_FILE
from gpt2x.data.tokenizer import DEFAULT_EOS, declared_tokens

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
    token = declared_tokens(source, _tokens(source).get).get("eos_token")
    if token is not None and "eos_token" not in declared_tokens(target, lambda _: None):
        file = target / "tokenizer_config.json"
        content = (read_json(file) if file.is_file() else {"tokenizer_class": "GPT2Tokenizer"}) | {"eos_token": token}
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special_ids(directory: Path) -> dict[str, int]:
    """Return role -> id of the tokens with a role, such as `bos_token`, by the rules of `Tokenizer.load`.

    Roles that no file gives, and tokens that the vocabulary lacks, are absent.

    Raises:
        UserError: one of the files is not JSON.
    """
    tokens = _tokens(directory)
    ids = {token: i for i, token in tokens.items()}
    roles = {"eos_token": DEFAULT_EOS} | declared_tokens(directory, tokens.get)
    return {role: ids[token] for role, token in roles.items() if token in ids}


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
