"""A tokenizer's files: copying them, and the ids of its special tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gpt2x.data.template import FILE as TEMPLATE_FILE
from gpt2x.data.tokenizer_classes import GENERIC
from gpt2x.data.tokenizer_reading import has_tokenizer, json_of, read_tokenizer, tokenizer_class

__all__ = ["copy_tokenizer", "has_tokenizer", "special_ids"]

TOKENIZER_FILES = (
    "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", TEMPLATE_FILE,
)  # fmt: skip


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files, as many as there are, and the template of prompts.

    config.json is not copied. So the class and the end-of-text token that only config.json names are written into
    tokenizer_config.json.
    """
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    eos = read_tokenizer(source).eos_token
    kind = tokenizer_class(source)
    named = {} if kind == tokenizer_class(target) else {"tokenizer_class": kind}
    if eos != read_tokenizer(target).eos_token:
        named["eos_token"] = eos
    if named:
        file = target / "tokenizer_config.json"
        content = {"tokenizer_class": GENERIC} | json_of(file) | named
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def special_ids(directory: Path) -> dict[str, int]:
    """Return role -> id of the tokens with a role, such as `bos_token`, by the rules of `Tokenizer.load`.

    Roles that no file gives, and tokens that the vocabulary lacks, are absent.

    Raises:
        UserError: the files cannot be read.
    """
    files = read_tokenizer(directory)
    ids = {role: files.backend.token_to_id(token) for role, token in files.special_tokens.items()}
    return {role: id for role, id in ids.items() if id is not None}
