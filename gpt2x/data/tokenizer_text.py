"""What a tokenizer does to a text: where it may be cut, whether decoding returns it, and the bytes of its tokens.

The functions read the `state` of a tokenizer, the content of its tokenizer.json.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

State = Mapping[str, Any]
WORD_SPLITTERS = ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")  # their words contain no whitespace
BY_CHARACTER = ("Lowercase", "BertNormalizer", "StripAccents")  # normalizers that look at one character at a time
KEEPS_TEXT = ("ByteLevel", "Digits", "UnicodeScripts", "FixedLength")  # pre-tokenizers that drop and add no character


def parts(component: State | None) -> list[State]:
    """Return the members of a normalizer, pre-tokenizer or decoder, one unless it is a Sequence."""
    if component is None:
        return []
    members = next((component[key] for key in ("normalizers", "pretokenizers", "decoders") if key in component), None)
    return [component] if members is None else [part for member in members for part in parts(member)]


def adds_prefix_space(state: State) -> bool:
    """Return whether byte-level pre-tokenization puts a blank before a text."""
    return any(part.get("add_prefix_space") for part in parts(state["pre_tokenizer"]))


def is_byte_level(state: State) -> bool:
    """Return whether tokens are bytes, so that they are decoded independently of each other."""
    decoder = state["decoder"] or {}
    return state["model"]["type"] == "BPE" and decoder.get("type") == "ByteLevel"


def has_all_bytes(state: State) -> bool:
    """Return whether each byte is a token; others are dropped by byte-level BPE, or become the unknown token."""
    return set(pre_tokenizers.ByteLevel.alphabet()) <= set(state["model"]["vocab"])


def is_gpt2(state: State) -> bool:
    """Return whether transformers' GPT2Tokenizer, which sets all but the vocabulary itself, encodes the same."""
    model, pre = state["model"], state["pre_tokenizer"] or {}
    options = ("unk_token", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        is_byte_level(state)
        and pre.get("type") == "ByteLevel"
        and pre.get("use_regex", True)
        and state["normalizer"] is None
        and not any(model.get(option) for option in options)
    )


def cuts_at_whitespace(state: State) -> bool:
    """Return whether a text may be cut before a blank or newline after a visible character without changing the ids."""
    pre, tokens = parts(state["pre_tokenizer"]), state["added_tokens"]
    if any(token["rstrip"] or re.search(r"\s", token["content"]) for token in tokens):
        return False
    if state["model"]["type"] == "BPE" and len(pre) == 1 and pre[0]["type"] == "ByteLevel":
        regex = pre[0].get("use_regex", True)
        return bool(regex and not pre[0].get("add_prefix_space") and state["normalizer"] is None)
    return (
        bool(pre)
        and pre[0]["type"] in WORD_SPLITTERS
        and len(pre) == 1
        and all(part["type"] in BY_CHARACTER for part in parts(state["normalizer"]))
    )


def loss_of_text(state: State) -> str | None:
    """Return why decoding the ids of a text may not return it, or None."""
    model = state["model"]
    if not is_byte_level(state):
        unknown = model.get("unk_token") or ("its unknown token" if model["type"] == "Unigram" else None)
        names = [part["type"] for part in (*parts(state["normalizer"]), *parts(state["pre_tokenizer"]))]
        rest = (
            f" what its vocabulary lacks becomes {unknown}" if unknown else " its vocabulary may lack parts of a text"
        )
        how = f"{', '.join(dict.fromkeys(names))} may change blanks and letters, and" if names else ""
        return f"{model['type']}: {how}{rest}".replace("  ", " ")
    if normalizers := parts(state["normalizer"]):
        return f"its normalizer ({', '.join(part['type'] for part in normalizers)}) changes texts"
    pre = parts(state["pre_tokenizer"])
    if adds_prefix_space(state):
        return "add_prefix_space=true puts a blank before a text"
    if not any(part["type"] == "ByteLevel" for part in pre):
        return "it has no pre-tokenizer ByteLevel, and drops what its vocabulary lacks"
    dropping = [
        part["type"] for part in pre if part["type"] not in KEEPS_TEXT and part.get("behavior") in (None, "Removed")
    ]
    if dropping:
        return f"its pre-tokenizer ({', '.join(dropping)}) drops characters"
    if not has_all_bytes(state):
        return "its vocabulary does not have all 256 bytes, and drops the others"
    stripping = [token["content"] for token in state["added_tokens"] if token["lstrip"] or token["rstrip"]]
    plain = [token["content"] for token in state["added_tokens"] if not token["special"]]
    if swallowing := [token for token in plain if token in stripping]:
        return f"{swallowing[0]} swallows blanks beside it"
    return None


def token_bytes(backend: tokenizers.Tokenizer, vocab_size: int) -> np.ndarray:
    """Return the bytes of each token of a byte-level tokenizer: a character of its name is one byte."""
    added = backend.get_added_tokens_decoder()
    sizes = np.zeros(vocab_size, np.int64)
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        if number >= vocab_size:  # of an embedding with fewer rows
            continue
        if number not in added:
            sizes[number] = len(token)
        elif not added[number].special:
            sizes[number] = len(added[number].content.encode())
    return sizes
