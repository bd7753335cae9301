"""Tokenizers: loaded from, and saved to, the files that transformers reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import models

from gpt2x.data import tokenizer_text
from gpt2x.data.added_tokens import in_order
from gpt2x.data.tokenizer_classes import GENERIC, GPT2, GPT2_TOKENS
from gpt2x.data.tokenizer_reading import guard, read_tokenizer
from gpt2x.errors import UserError
from gpt2x.runtime.files import written_by_rust
from gpt2x.runtime.hub import Wish, check_blobs, fetch, names_repository

CANNOT_ENCODE = "The tokenizer cannot encode a text"
HUB_FILES = Wish(
    required=(("tokenizer.json", "vocab.json", "vocab.txt"),),
    optional=("merges.txt", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"),
)


class Tokenizer:
    """A tokenizer with an end-of-text token.

    Encoding equals transformers' `AutoTokenizer` without special tokens at the ends: a special token that is written
    out in a text, such as `<|endoftext|>`, becomes one id; nothing is added at either end.

    Attributes:
        vocab_size: Largest id + 1, special tokens included; the rows of the embedding after `limit_to`.
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
        loss: Why decoding the ids of a text may not return it; None if it always does.
        is_byte_level: True if tokens are bytes, so that each is decoded independently of the others.

    Args:
        backend: Encodes.
        eos_token: Ends a text.
        special_tokens: Role -> text of further tokens.
        additional: Texts of special tokens without a role.
        options: Keys of tokenizer_config.json that `save` writes again.

    Raises:
        UserError: The end-of-text token is not in the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token: str,
        special_tokens: Mapping[str, str] | None = None,
        additional: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        eos_id = backend.token_to_id(eos_token)
        if eos_id is None:
            raise UserError(
                f"The end-of-text token {eos_token!r} is not in the tokenizer's vocabulary. Give one that is with "
                f"tokenizer.eos_token=..., or use the tokenizer files that belong to the model."
            )
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # BPE dropout would make every encoding different
        if eos_id not in backend.get_added_tokens_decoder():
            backend.add_special_tokens([tokenizers.AddedToken(eos_token, special=True, normalized=False)])
        self._backend = backend
        self._additional, self._options = tuple(additional), dict(options or {})
        self.eos_token: str = eos_token
        self.eos_id: int = eos_id
        self.special_tokens: dict[str, str] = in_order(dict(special_tokens or {}) | {"eos_token": eos_token})
        self.bos_id: int | None = self.role_ids().get("bos_token")
        self.pad_id: int | None = self.role_ids().get("pad_token")
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._has_tokens_beyond = False
        state = json.loads(backend.to_str())
        plain = {token["content"] for token in state["added_tokens"] if not token["special"]}
        self._names_plain = not plain.isdisjoint(self.special_tokens.values())
        self._is_gpt2 = tokenizer_text.is_gpt2(state) and not self._names_plain
        self._adds_prefix_space = tokenizer_text.adds_prefix_space(state)
        self.fingerprint: str = _fingerprint(state, eos_token, split=backend.encode_special_tokens)
        self.cuts_at_whitespace: bool = tokenizer_text.cuts_at_whitespace(state)
        self.loss: str | None = tokenizer_text.loss_of_text(state)
        self.is_byte_level: bool = tokenizer_text.is_byte_level(state)

    def role_ids(self) -> dict[str, int]:
        """Return role -> id of `special_tokens`."""
        ids = {role: self._backend.token_to_id(token) for role, token in self.special_tokens.items()}
        return {role: id for role, id in ids.items() if id is not None}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`.

        Raises:
            UserError: The vocabulary lacks a part of it, and there is no unknown token; or as `limit_to` says.
        """
        return self._checked(guard(lambda: self._backend.encode(text, add_special_tokens=False).ids, CANNOT_ENCODE))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; texts are spread over the processor's cores.

        Raises:
            UserError: As `encode`.
        """
        encodings = guard(lambda: self._backend.encode_batch_fast(list(texts), add_special_tokens=False), CANNOT_ENCODE)
        return [self._checked(encoding.ids) for encoding in encodings]

    def _checked(self, ids: list[int]) -> list[int]:
        if self._has_tokens_beyond and ids and max(ids) >= self.vocab_size:
            raise UserError(
                f"A text has the token {self._backend.id_to_token(max(ids))!r} with the id {max(ids)}, for which the "
                f"model has no row: its embedding has {self.vocab_size}. Remove it from the text, or train with "
                "tokenizer.extend=true and tokenizer.path=, which adds rows."
            )
        return ids

    def limit_to(self, num_rows: int) -> bool:
        """Use this tokenizer with an embedding of `num_rows` rows, if only added tokens lie beyond; return whether.

        transformers loads such models: a [PAD] was added, and the embedding not resized. From then on a text with a
        token beyond is rejected. The fingerprint changes, since rows made without the limit may hold such tokens.
        """
        beyond = {id for id in self._backend.get_vocab(with_added_tokens=True).values() if id >= num_rows}
        if self.eos_id >= num_rows or not beyond <= set(self._backend.get_added_tokens_decoder()):
            return False
        if beyond:
            self.vocab_size, self._has_tokens_beyond = num_rows, True
            self.fingerprint = hashlib.sha256(f"{self.fingerprint} {num_rows}".encode()).hexdigest()
        return True

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Return the text of `ids`. Special tokens are included unless skipped; invalid bytes become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self) -> np.ndarray | None:
        """Return how many bytes of UTF-8 text each id stands for, int64 (vocab_size,); 0 for special tokens.

        None if an id does not decide it, because encoding changes texts (`loss`).
        """
        return None if self.loss else tokenizer_text.token_bytes(self._backend, self.vocab_size)

    @property
    def note_of_loss(self) -> str:
        """What a user should know of numbers that this tokenizer is part of, if it has a `loss`."""
        return (
            f"decoding may not return a text ({self.loss}), so no bits per byte are computed, and perplexities compare "
            "only with those of the same tokenizer"
        )

    def extends(self, other: Tokenizer) -> bool:
        """Return True if every token of `other` has the same id here, and both end a text with the same token."""
        ids, other_ids = (tokenizer._backend.get_vocab(with_added_tokens=True) for tokenizer in (self, other))
        return self.eos_token == other.eos_token and all(ids.get(token) == id for token, id in other_ids.items())

    def save(self, directory: Path) -> None:
        """Write the files that `transformers.AutoTokenizer` and `load` read into `directory`, which may be new.

        GPT-2's class sets normalizer and pre-tokenizer itself, so it is named only if it encodes the same.

        Raises:
            OSError: a file cannot be written.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with written_by_rust(directory / "tokenizer.json"):
            self._backend.save(str(directory / "tokenizer.json"))
        roles: dict[str, str | None] = dict(self.special_tokens)
        if self._is_gpt2:
            with written_by_rust(directory / "vocab.json"):
                self._backend.model.save(str(directory))  # vocab.json, merges.txt
            roles = in_order(dict.fromkeys(GPT2_TOKENS) | roles)  # null: not the class' own token
        config: dict[str, Any] = {
            "tokenizer_class": GPT2 if self._is_gpt2 else GENERIC,
            **roles,
            "clean_up_tokenization_spaces": False,
            **self._options,
        }
        if self._is_gpt2:
            config["add_prefix_space"] = self._adds_prefix_space
        if self._names_plain:
            config["added_tokens_decoder"] = {}  # else transformers makes each token with a role special
        if self._additional:
            config["additional_special_tokens"] = list(self._additional)
        if self._backend.encode_special_tokens:
            config["split_special_tokens"] = True
        _write_json(directory / "tokenizer_config.json", config)
        _write_json(directory / "special_tokens_map.json", self.special_tokens)

    @classmethod
    def load(cls, path: str | Path, eos_token: str | None = None) -> Tokenizer:
        """Load from a directory, a tokenizer.json, or a hub repository.

        Args:
            path: A directory with the files of `gpt2x.data.tokenizer_reading`, or a tokenizer.json; else the name of a
                repository on the Hugging Face hub (`gpt2x.runtime.hub`).
            eos_token: Used if the files name none.

        Raises:
            UserError: No such files, files that do not parse, no end-of-text token, or a hub that cannot be reached.
        """
        local = Path(path).expanduser()
        if not local.exists():
            if not names_repository(str(path)):
                raise UserError(
                    f"tokenizer.path={path} does not exist. Give a directory with vocab.json and merges.txt (or "
                    f"tokenizer.json), the name of a hub repository, or tokenizer=bpe to train one on the corpus."
                )
            fix = "Give tokenizer.path= a local directory with vocab.json and merges.txt, or use tokenizer=bpe."
            local = fetch("tokenizer.path", str(path), HUB_FILES, fix)
        check_blobs(local.parent if local.is_file() else local, HUB_FILES.names)
        files = read_tokenizer(local, eos_token)
        return cls(files.backend, files.eos_token, files.special_tokens, files.additional, files.options)


def _places(token: Mapping[str, Any]) -> list[str]:
    """Return what limits where an added token is looked for; GPT-2's has none of it."""
    return [flag for flag in ("lstrip", "rstrip", "single_word") if token[flag]]


def _fingerprint(state: Mapping[str, Any], eos_token: str, *, split: bool) -> str:
    """Return the hash of what decides the ids: vocabulary, merges, added tokens, normalizer, pre-tokenization."""
    model, pre = state["model"], state["pre_tokenizer"]
    if pre is not None:
        pre = {key: value for key, value in pre.items() if key != "trim_offsets"}  # decides offsets, not ids
    options = {k: v for k, v in model.items() if k not in ("type", "vocab", "merges", "dropout") and v}
    if tokenizer_text.is_byte_level(state):
        options = {k: v for k, v in options.items() if k in ("ignore_merges", "byte_fallback")}
    else:
        options["type"] = model["type"]
    facts = {
        "vocab": model["vocab"],
        "merges": [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])],
        "options": options,
        "added": sorted([t["id"], t["content"], t["special"], *_places(t)] for t in state["added_tokens"]),
        "normalizer": state["normalizer"],
        "pre_tokenizer": pre,
        "eos_token": eos_token,
    }
    if split:
        facts["split_special_tokens"] = True
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
