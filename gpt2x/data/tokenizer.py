"""Byte-level BPE tokenizers: loaded from, and saved to, the files that transformers reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from gpt2x.errors import UserError
from gpt2x.runtime.hub import Wish, fetch, names_repository
from gpt2x.runtime.json_text import read_json

DEFAULT_EOS = "<|endoftext|>"
GPT2_ROLES = ("bos_token", "unk_token")  # which GPT-2's class sets if no file names them
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
HUB_FILES = Wish(
    required=(("tokenizer.json", "vocab.json"),),
    optional=("merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"),
)


class Tokenizer:
    """A byte-level BPE tokenizer with an end-of-text token.

    Encoding equals transformers' `GPT2TokenizerFast`: a special token that is written out in a text, such as
    `<|endoftext|>`, becomes one id; nothing is added at either end.

    Attributes:
        vocab_size: Number of ids, special tokens included.
        eos_id: Id of the end-of-text token.
        eos_token: Its text.
        special_tokens: Text of each token that has a role, such as `bos_token`: those that the files name and that the
            vocabulary has.
        bos_id: Id of the token before a text, or None.
        pad_id: Id of the padding token, or None.
        fingerprint: sha256 of what decides the encoding; the same for vocab.json + merges.txt, for tokenizer.json
            and after save and load.
        cuts_at_whitespace: True if a text may be cut before a blank or newline that follows a visible character, and
            its parts encoded one by one, without changing the ids. GPT-2's pre-tokenization allows it: whitespace
            always starts a new word there.

    Raises:
        UserError: The end-of-text token is not in the vocabulary.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, eos_token: str, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            raise UserError(
                f"The end-of-text token {eos_token!r} is not in the tokenizer's vocabulary. Give one that is with "
                f"tokenizer.eos_token=..., or use the tokenizer files that belong to the model."
            )
        backend.no_truncation()
        backend.no_padding()
        backend.model.dropout = None  # BPE dropout would make every encoding different
        if eos_id not in backend.get_added_tokens_decoder():
            backend.add_special_tokens([tokenizers.AddedToken(eos_token, special=True, normalized=False)])
        self._backend = backend
        self.eos_token: str = eos_token
        self.eos_id: int = eos_id
        self.special_tokens: dict[str, str] = {
            role: token
            for role, token in (dict(special_tokens or {}) | {"eos_token": eos_token}).items()
            if backend.token_to_id(token) is not None
        }
        self.bos_id: int | None = self._role_id("bos_token")
        self.pad_id: int | None = self._role_id("pad_token")
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        state = json.loads(backend.to_str())
        self.fingerprint: str = _fingerprint(state, eos_token)
        pre = state["pre_tokenizer"] or {}
        self._adds_prefix_space: bool = bool(pre.get("add_prefix_space"))
        self.cuts_at_whitespace: bool = (
            pre.get("type") == "ByteLevel"
            and pre.get("use_regex", True)
            and not self._adds_prefix_space
            and state["normalizer"] is None
            and not any(token["rstrip"] or re.search(r"\s", token["content"]) for token in state["added_tokens"])
        )

    def _role_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self._backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; texts are spread over the processor's cores."""
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`. Special tokens are included unless skipped; invalid bytes become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes of UTF-8 text each id stands for, int64 (vocab_size,); 0 for special tokens.

        In byte-level BPE a character of a token's name is one byte. With a normalizer or a prefix space, these are the
        bytes of the text that the model reads, after them.
        """
        added = self._backend.get_added_tokens_decoder()
        sizes = np.zeros(self.vocab_size, np.int64)
        for token, number in self._backend.get_vocab(with_added_tokens=True).items():
            if number >= len(sizes):  # ids with gaps
                sizes = np.pad(sizes, (0, number + 1 - len(sizes)))
            if number not in added:
                sizes[number] = len(token)
            elif not added[number].special:
                sizes[number] = len(token.encode())
        return sizes

    def extends(self, other: Tokenizer) -> bool:
        """Return True if every token of `other` has the same id here, and both end a text with the same token."""
        ids, other_ids = (tokenizer._backend.get_vocab(with_added_tokens=True) for tokenizer in (self, other))
        return self.eos_token == other.eos_token and all(ids.get(token) == id for token, id in other_ids.items())

    def save(self, directory: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` and `load` read into `directory`, which may be new."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(directory / "tokenizer.json"))
        self._backend.model.save(str(directory))  # vocab.json, merges.txt
        special = self.special_tokens
        config = {
            "tokenizer_class": "GPT2Tokenizer",
            **special,
            "add_prefix_space": self._adds_prefix_space,
            "clean_up_tokenization_spaces": False,
        }
        _write_json(directory / "tokenizer_config.json", config)
        _write_json(directory / "special_tokens_map.json", special)

    @classmethod
    def load(cls, path: str | Path, eos_token: str | None = None) -> Tokenizer:
        """Load from a directory, a tokenizer.json, or a hub repository.

        Args:
            path: A directory with tokenizer.json, or vocab.json and merges.txt; a tokenizer.json; else the name of a
                repository on the Hugging Face hub (`gpt2x.runtime.hub`).
            eos_token: Used if the files name none.

        Raises:
            UserError: No such files, files that do not parse, no end-of-text token, or a hub that cannot be reached.
        """
        local = Path(path).expanduser()
        if local.is_file():
            backend = _read_tokenizer_json(local)
            return cls._of_files(backend, local.parent, eos_token)
        if local.is_dir():
            return cls._load_directory(local, eos_token)
        if not names_repository(str(path)):
            raise UserError(
                f"tokenizer.path={path} does not exist. Give a directory with vocab.json and merges.txt (or "
                f"tokenizer.json), the name of a hub repository, or tokenizer=bpe to train one on the corpus."
            )
        fix = "Give tokenizer.path= a local directory with vocab.json and merges.txt, or train one with tokenizer=bpe."
        return cls._load_directory(fetch("tokenizer.path", str(path), HUB_FILES, fix), eos_token)

    @classmethod
    def _load_directory(cls, directory: Path, eos_token: str | None) -> Tokenizer:
        vocab, merges = directory / "vocab.json", directory / "merges.txt"
        if (directory / "tokenizer.json").is_file():
            backend = _read_tokenizer_json(directory / "tokenizer.json")
        elif vocab.is_file() and merges.is_file():
            try:
                backend = byte_level(models.BPE.from_file(str(vocab), str(merges)))
            except Exception as error:  # the library raises a bare Exception
                raise UserError(
                    f"tokenizer.path={directory}: vocab.json and merges.txt do not fit: {error}."
                ) from error
        else:
            names = ", ".join(sorted(p.name for p in directory.iterdir())[:8]) or "nothing"
            raise UserError(
                f"tokenizer.path={directory} has no tokenizer: tokenizer.json, or vocab.json and merges.txt, is "
                f"needed; it has {names}. Point tokenizer.path to the right directory, or use tokenizer=bpe."
            )
        return cls._of_files(backend, directory, eos_token)

    @classmethod
    def _of_files(cls, backend: tokenizers.Tokenizer, directory: Path, eos_token: str | None) -> Tokenizer:
        roles = declared_tokens(directory, backend.id_to_token)
        return cls(backend, roles.get("eos_token") or eos_token or DEFAULT_EOS, roles)


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """Return `model` with GPT-2's pre-tokenization, decoding and offsets."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"tokenizer.path={path} is not a tokenizer.json: {error}.") from error
    if not (isinstance(backend.model, models.BPE) and isinstance(backend.decoder, decoders.ByteLevel)):
        raise UserError(
            f"tokenizer.path={path} is a {type(backend.model).__name__} tokenizer; gpt2x reads byte-level BPE, "
            f"as GPT-2's. Use such a tokenizer, or tokenizer=bpe to train one on the corpus."
        )
    return backend


def declared_tokens(directory: Path, token_of: Callable[[int], str | None]) -> dict[str, str]:
    """Return role -> text of the tokens that a tokenizer's files name.

    The end-of-text token may be named by the id in the model's config.json. GPT-2's class takes `<|endoftext|>` for
    BOS and UNK if no file names them.
    """
    config, named = _read_json(directory / "tokenizer_config.json"), _read_json(directory / "special_tokens_map.json")
    roles = {}
    for role in ROLES:
        tokens = (source.get(role) for source in (config, named))
        contents = (token.get("content") if isinstance(token, dict) else token for token in tokens)
        if token := next((content for content in contents if isinstance(content, str) and content), None):
            roles[role] = token
    if "eos_token" not in roles:
        eos_id = _read_json(directory / "config.json").get("eos_token_id")
        if isinstance(eos_id, int) and (token := token_of(eos_id)) is not None:
            roles["eos_token"] = token
    if str(config.get("tokenizer_class", "GPT2Tokenizer")).removesuffix("Fast") == "GPT2Tokenizer":
        roles = dict.fromkeys(GPT2_ROLES, DEFAULT_EOS) | roles
    return roles


def _fingerprint(state: dict[str, Any], eos_token: str) -> str:
    """Return the hash of what decides the ids: vocabulary, merges, added tokens, normalizer, pre-tokenization."""
    model, pre = state["model"], state["pre_tokenizer"]
    if pre is not None:
        pre = {key: value for key, value in pre.items() if key != "trim_offsets"}  # decides offsets, not ids
    facts = {
        "vocab": model["vocab"],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
        "options": {k: v for k, v in model.items() if k in ("ignore_merges", "byte_fallback") and v},
        "added": sorted([t["id"], t["content"], t["special"]] for t in state["added_tokens"]),
        "normalizer": state["normalizer"],
        "pre_tokenizer": pre,
        "eos_token": eos_token,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
