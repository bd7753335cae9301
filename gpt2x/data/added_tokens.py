"""Tokens beside the vocabulary, collected and added as transformers 5.24 does (its `_from_pretrained`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken

from gpt2x.compatibility import Entry, Use, entries
from gpt2x.errors import UserError

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LISTS = ("additional_special_tokens", "extra_special_tokens")
TOKEN_KEYS = (
    *entries(Use.READ, ROLES, "a text, or an object with content; null: no such token."),
    Entry("*_token", Use.READ, "further names, such as image_token."),
    Entry("added_tokens_decoder", Use.READ, "tokens with lstrip, rstrip, normalized, single_word and special; they get "
          "the next free ids in the order of their numbers, as in transformers."),
    *entries(Use.READ, LISTS, "special tokens without a role, or an object of named ones."),
)  # fmt: skip

Token = str | AddedToken
T = TypeVar("T")


@dataclass(frozen=True)
class DeclaredTokens:
    """What the files say of tokens.

    Attributes:
        numbered: tokens with the number that the files give them.
        roles: role -> token; None if the files say that there is none.
        additional: special tokens without a role.
    """

    numbered: dict[int, AddedToken]
    roles: dict[str, Token | None]
    additional: list[Token]

    def text(self, role: str) -> str | None:
        """Return the text of the token with a role, or None."""
        token = self.roles.get(role)
        return None if token is None else str_of(token)

    def texts(self) -> dict[str, str]:
        """Return role -> text."""
        return {role: str_of(token) for role, token in self.roles.items() if token is not None}

    def additional_texts(self) -> tuple[str, ...]:
        """Return the texts of the special tokens without a role."""
        return tuple(map(str_of, self.additional))


def str_of(token: Token) -> str:
    """Return the text of a token."""
    return token if isinstance(token, str) else token.content


def declared_tokens(
    config: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added: Mapping[str, Any],
    of_json: Sequence[Any],
    directory: Path,
) -> DeclaredTokens:
    """Return the tokens that the files declare.

    Args:
        config: tokenizer_config.json. If it has added_tokens_decoder, the other three are not read.
        special_map: special_tokens_map.json, which comes before tokenizer_config.json.
        added: added_tokens.json.
        of_json: added_tokens of tokenizer.json.
        directory: of the files, for messages.

    Raises:
        UserError: a token that is neither a text nor an object with content.
    """
    values = dict(config)
    if values.get("additional_special_tokens") is not None and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    named_extra = values.pop("extra_special_tokens") if isinstance(values.get("extra_special_tokens"), dict) else {}
    numbered: dict[int, AddedToken] = {}
    name = "tokenizer_config.json"
    if "added_tokens_decoder" in values:
        for number, token in _object(
            values["added_tokens_decoder"], f"{directory / name}: added_tokens_decoder"
        ).items():
            numbered[_number(number, directory / name)] = _added(token, f"{directory / name}: token {number}")
    else:
        values |= _of_map(special_map, values)
        extra = values.get("extra_special_tokens") or []
        if not isinstance(extra, list | dict):
            raise UserError(
                f"{directory / name}: extra_special_tokens={extra!r} must be a list or an object. Correct it."
            )
        special = {text for key in ROLES if (text := _content(values.get(key)))}
        special |= {text for token in extra if (text := _content(token))}
        for text, number in added.items():
            is_special = text in special
            token = AddedToken(text, normalized=not is_special, special=is_special)
            numbered[_number(number, directory / "added_tokens.json")] = token
        for token in of_json:
            where = f"{directory / 'tokenizer.json'}: added_tokens"
            numbered[_object(token, where)["id"]] = _added(token, where)
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    named: dict[str, Any] = {
        key: value for key, value in values.items() if key.endswith("_token") and isinstance(value, str | dict)
    }
    named |= {role: None for role in ROLES if role in values and values[role] is None}
    if isinstance(extra, dict):
        named_extra, extra = {**named_extra, **extra}, []
    named |= named_extra
    if not isinstance(extra, list):
        raise UserError(f"{directory / name}: extra_special_tokens={extra!r} must be a list or an object. Correct it.")
    by_text = {token.content: token for token in numbered.values()}
    roles = {role: _with_flags(token, by_text, directory / name) for role, token in named.items()}
    return DeclaredTokens(numbered, roles, [_token(token, directory / name) for token in extra])


def _of_map(special_map: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what special_tokens_map.json says, with the extra tokens of tokenizer_config.json before its own."""
    content = {
        key: value | {"special": True} if isinstance(value, dict) and key not in LISTS else value
        for key, value in special_map.items()
    }
    extra = content.get("extra_special_tokens")
    if isinstance(extra, list):
        before = values.get("extra_special_tokens") or []
        before = before if isinstance(before, list) else []
        content["extra_special_tokens"] = [*before, *(token for token in extra if token not in before)]
    return content


def add_tokens(
    backend: tokenizers.Tokenizer, declared: DeclaredTokens, implied: Mapping[str, str], eos_token: str
) -> None:
    """Add the tokens that the vocabulary lacks to `backend`, with the ids that transformers gives them.

    Args:
        backend: the tokenizer.
        declared: the tokens that the files name.
        implied: role -> token that only the class names. transformers adds these too, but models rarely have a row for
            them. So they are left out if no other token gets an id after theirs.
        eos_token: ends texts, so it is never left out.
    """
    tokens: list[Token] = [token for _, token in sorted(declared.numbered.items())]
    there = {token.content for token in backend.get_added_tokens_decoder().values()} | set(map(str_of, tokens))
    roles: dict[str, Token | None] = {**implied, **declared.roles}
    ordered = [token for _, token in in_order(roles).items() if token is not None]
    for token in [*ordered, *declared.additional]:
        if str_of(token) not in there and token not in tokens:  # a text and an object are two: the later flags win
            tokens.append(token)
    optional = set(implied.values()) - set(declared.texts().values()) - {eos_token}
    while tokens and str_of(tokens[-1]) in optional and backend.token_to_id(str_of(tokens[-1])) is None:
        tokens.pop()
    names = set(map(str_of, ordered))
    flagged = [AddedToken(token, special=True) if isinstance(token, str) else token for token in tokens]
    for token in flagged:
        token.special = token.special or token.content in names
    backend.add_tokens(flagged)


def in_order(roles: Mapping[str, T]) -> dict[str, T]:
    """Return `roles` in the order of `ROLES`, and other names after them."""
    return dict(sorted(roles.items(), key=_rank))


def _rank(item: tuple[str, Any]) -> int:
    return ROLES.index(item[0]) if item[0] in ROLES else len(ROLES)


def _with_flags(token: Any, by_text: Mapping[str, AddedToken], file: Path) -> Token | None:
    token = None if token is None else _token(token, file)
    return None if token is None else by_text.get(str_of(token), token)


def _token(token: Any, file: Path) -> Token:
    return token if isinstance(token, str) else _added(token, str(file))


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _added(token: Any, where: str) -> AddedToken:
    flags = {key: value for key, value in _object(token, where).items() if key in FLAGS}
    content = token.get("content")
    if not isinstance(content, str) or not all(isinstance(value, bool) for value in flags.values()):
        raise UserError(f"{where}: {token!r} must have a text as content, and true or false as flags. Correct it.")
    return AddedToken(content, **flags)


def _number(number: Any, file: Path) -> int:
    text = str(number)
    if isinstance(number, bool) or not (text.isascii() and text.isdigit()):
        raise UserError(f"{file}: the id {number!r} must be a whole number from 0. Correct it.")
    return int(text)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: {value!r} must be an object. Correct it.")
    return value
