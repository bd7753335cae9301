"""A tokenizer's files, read as transformers' `AutoTokenizer` (5.24) reads them.

1. The class decides: a class of `gpt2x.data.tokenizer_classes.CLASSES` takes vocabulary and merges from the files and
   splits texts its own way; the generic class takes tokenizer.json as it is.
2. Tokens beside the vocabulary follow (`gpt2x.data.added_tokens`): each becomes one id, the first free one.
3. The end-of-text token is the one that the files name, else that of the model's config.json, else the configured one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import tokenizers
from tokenizers import models, processors

from gpt2x.compatibility import Use
from gpt2x.data.added_tokens import add_tokens, declared_tokens
from gpt2x.data.tokenizer_classes import (
    CLASS_OF_MODEL_TYPE,
    CLASSES,
    DEFAULT_EOS,
    GENERIC,
    GPT2,
    OTHER_CLASSES,
    TokenizerClass,
)
from gpt2x.data.tokenizer_formats import CONFIG, FILES, KEPT
from gpt2x.data.tokenizer_limits import check_content
from gpt2x.errors import UserError
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import decoded_text, read_json

T = TypeVar("T")
MAX_ID = 10_000_000  # a broken file must not make a table of four billion rows
AGAIN = "Copy or download the tokenizer's files again"


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say.

    Attributes:
        backend: encodes as the files say.
        eos_token: text of the end-of-text token; the vocabulary may lack it.
        special_tokens: role -> text of the tokens with a role.
        additional: texts of the special tokens without a role.
        options: keys of tokenizer_config.json that saving keeps.
    """

    backend: tokenizers.Tokenizer
    eos_token: str
    special_tokens: dict[str, str]
    additional: tuple[str, ...]
    options: dict[str, Any]


def has_tokenizer(directory: Path) -> bool:
    """Return whether `directory` has tokenizer.json, vocab.json with merges.txt, or vocab.txt of BERT."""
    return (
        (directory / "tokenizer.json").is_file()
        or all((directory / name).is_file() for name in ("vocab.json", "merges.txt"))
        or ((directory / "vocab.txt").is_file() and tokenizer_class(directory) == "BertTokenizer")
    )


def read_tokenizer(path: Path, eos_token: str | None = None) -> TokenizerFiles:
    """Read a tokenizer.json or the directory of a tokenizer.

    Args:
        path: the file or the directory.
        eos_token: used if the files name none.

    Raises:
        UserError: no tokenizer, or files that do not parse or that gpt2x does not read.
    """
    directory, file = (path.parent, path) if path.is_file() else (path, path / "tokenizer.json")
    config = json_of(directory / "tokenizer_config.json")
    name = tokenizer_class(directory)
    _check(config, name, directory, file)
    kind = CLASSES.get(name)
    if file.is_file():
        content = _read_tokenizer_json(file)
        if kind is None or _is_old_save(config, content, directory):
            backend, kind = _from_json(file), None
        else:
            backend = kind.build(_model_of_json(content, kind, name, file), config)
            if isinstance(content.get("post_processor"), dict):
                backend.post_processor = _from_json(file).post_processor
    else:
        content = {}
        kind = kind or CLASSES[GPT2]
        backend = kind.build(_model_of_files(directory, kind), config)
    declared = declared_tokens(
        config, json_of(directory / "special_tokens_map.json"), json_of(directory / "added_tokens.json"),
        content.get("added_tokens", []), directory,
    )  # fmt: skip
    implied = {} if kind is None else {role: t for role, t in kind.special_tokens.items() if role not in declared.roles}
    model_eos = _eos_of_model(directory, backend)
    eos = declared.text("eos_token") or model_eos or eos_token or implied.get("eos_token") or DEFAULT_EOS
    guard(lambda: add_tokens(backend, declared, implied, eos), f"{directory}: its added tokens do not fit")
    special = implied | declared.texts()
    special = {role: token for role, token in special.items() if backend.token_to_id(token) is not None}
    if not file.is_file() and any(config.get(key) for key in ("add_bos_token", "add_eos_token")):
        _add_ends(backend, config, special)
    if config.get("split_special_tokens"):
        backend.encode_special_tokens = True
    options = {key: config[key] for key in KEPT if key in config}
    return TokenizerFiles(backend, eos, special | {"eos_token": eos}, declared.additional_texts(), options)


def tokenizer_class(directory: Path) -> str:
    """Return the class that transformers builds, without Fast; GENERIC: tokenizer.json as it is."""
    model = json_of(directory / "config.json")
    name = json_of(directory / "tokenizer_config.json").get("tokenizer_class") or model.get("tokenizer_class")
    if name is None:
        return CLASS_OF_MODEL_TYPE.get(str(model.get("model_type")), GENERIC)
    short = str(name).removesuffix("Fast")
    return short if short in CLASSES or short in OTHER_CLASSES else GENERIC


def _check(config: Mapping[str, Any], name: str, directory: Path, file: Path) -> None:
    """Reject what only transformers' code can read."""
    for key in CONFIG.names(Use.REJECTED):
        if config.get(key) and not (key == "fast_tokenizer_files" and config[key] == ["tokenizer.json"]):
            note = next(entry.note for entry in CONFIG.entries if entry.name == key)
            raise UserError(f"{directory / 'tokenizer_config.json'}: {key} is not read: {note}")
    for key in ("add_prefix_space", "split_special_tokens", "do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        if not isinstance(config.get(key), bool | None):
            raise UserError(
                f"{directory / 'tokenizer_config.json'}: {key}={json.dumps(config[key])} must be true or false. "
                "Correct it."
            )
    byte_level_llama = name == "LlamaTokenizer" and file.is_file() and '"ByteLevel"' in _text(file)
    if name in OTHER_CLASSES and not byte_level_llama:
        fix = (
            f'If tokenizer.json is to be used as it is, write "tokenizer_class": "{GENERIC}".'
            if file.is_file()
            else f'Save it with transformers as tokenizer.json, and write "tokenizer_class": "{GENERIC}".'
        )
        raise UserError(f"tokenizer.path={directory}: gpt2x does not have the rules of tokenizer_class={name}. {fix}")
    if not file.is_file() and not has_tokenizer(directory):
        raise UserError(
            f"tokenizer.path={directory} has no tokenizer: {missing(directory)} Point tokenizer.path to the right "
            "directory, or use tokenizer=bpe."
        )


def missing(directory: Path) -> str:
    """Return a sentence about the files that a directory without a tokenizer has."""
    for entry in FILES.entries:
        if entry.use is Use.REJECTED and (directory / entry.name).is_file():
            return (
                f"{entry.name} is {entry.note.rstrip('.')}, which gpt2x does not read. Save it with transformers as "
                "tokenizer.json."
            )
    if (directory / "vocab.txt").is_file():
        return 'vocab.txt is read if tokenizer_config.json has "tokenizer_class": "BertTokenizer".'
    names = ", ".join(sorted(p.name for p in directory.iterdir())[:8]) or "nothing"
    return f"tokenizer.json, or vocab.json and merges.txt, is needed; it has {names}."


def _is_old_save(config: Mapping[str, Any], content: Mapping[str, Any], directory: Path) -> bool:
    """Return whether an earlier gpt2x wrote the files: it wrote GPT-2's class for each tokenizer.json."""
    pre = content.get("pre_tokenizer")
    prefix = isinstance(pre, dict) and bool(pre.get("add_prefix_space"))
    old = {"tokenizer_class", *CLASSES[GPT2].special_tokens, "add_prefix_space", "clean_up_tokenization_spaces"}
    roles = {role: config.get(role) for role in CLASSES[GPT2].special_tokens}
    return (
        set(config) == old
        and config["tokenizer_class"] == GPT2
        and config["add_prefix_space"] == prefix
        and len(set(map(str, roles.values()))) == 1
        and json_of(directory / "special_tokens_map.json") == roles
    )


def _eos_of_model(directory: Path, backend: tokenizers.Tokenizer) -> str | None:
    """Return the token whose id the model's config.json names as EOS; the first one of a list."""
    eos_id = json_of(directory / "config.json").get("eos_token_id")
    eos_id = eos_id[0] if isinstance(eos_id, list) and eos_id else eos_id
    if isinstance(eos_id, int) and not isinstance(eos_id, bool) and 0 <= eos_id < MAX_ID:
        return backend.id_to_token(eos_id)
    return None


def _add_ends(backend: tokenizers.Tokenizer, config: Mapping[str, Any], roles: Mapping[str, str]) -> None:
    """Set what transformers adds at the ends of a text of vocab.json and merges.txt; gpt2x only saves it."""
    ends = [roles.get(role) if config.get(f"add_{role}") else None for role in ("bos_token", "eos_token")]
    parts = [ends[0], "$A", ends[1]]
    ids = {token: backend.token_to_id(token) for token in ends if token}
    if None not in ids.values():
        backend.post_processor = processors.TemplateProcessing(
            single=[part for part in parts if part], pair=None, special_tokens=list(ids.items())
        )


# ---- files


def _read_tokenizer_json(file: Path) -> dict[str, Any]:
    content = json_of(file)
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else []
    tokens = content.get("added_tokens") or []
    if not isinstance(vocabulary, dict | list) or not isinstance(tokens, list):
        raise UserError(f"tokenizer.path={file} is not a tokenizer.json: model.vocab is absent. {AGAIN}.")
    added = [token.get("id") for token in tokens if isinstance(token, dict)]
    for number in [*ids, *added]:
        if not isinstance(number, int) or not 0 <= number < MAX_ID:
            raise UserError(f"tokenizer.path={file} has the id {number}; ids are from 0 to {MAX_ID:,}. {AGAIN}.")
    check_content(content, file)
    return content


def _from_json(file: Path) -> tokenizers.Tokenizer:
    return guard(lambda: tokenizers.Tokenizer.from_file(str(file)), f"tokenizer.path={file} is not a tokenizer.json")


def _model_of_json(content: Mapping[str, Any], kind: TokenizerClass, name: str, file: Path) -> Any:
    model = content["model"]
    if model.get("type", kind.model) != kind.model or not isinstance(model["vocab"], dict):
        raise UserError(
            f"tokenizer.path={file} is a {model.get('type')} tokenizer, but transformers reads it as a {name}, which "
            f'is {kind.model}. Write "tokenizer_class": "{GENERIC}" into tokenizer_config.json to use the file.'
        )
    fault = f"tokenizer.path={file} is not a tokenizer.json"
    if kind.model == "WordPiece":
        return guard(lambda: models.WordPiece(model["vocab"], unk_token=model.get("unk_token", "[UNK]")), fault)
    merges: list[Any] = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model.get("merges") or []]
    return guard(lambda: models.BPE(model["vocab"], merges), fault)


def _model_of_files(directory: Path, kind: TokenizerClass) -> Any:
    if kind.model == "WordPiece":
        lines = _text(directory / "vocab.txt").split("\n")
        vocabulary = {line: number for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines)}
        return guard(lambda: models.WordPiece(vocabulary, unk_token="[UNK]"), f"{directory / 'vocab.txt'}")
    vocab, merges = directory / "vocab.json", directory / "merges.txt"
    _text(merges)
    for number in json_of(vocab).values():
        if not isinstance(number, int) or not 0 <= number < MAX_ID:
            raise UserError(f"tokenizer.path={vocab} has the id {number}; ids are from 0 to {MAX_ID:,}. {AGAIN}.")
    return guard(
        lambda: models.BPE.from_file(str(vocab), str(merges)),
        f"tokenizer.path={directory}: vocab.json and merges.txt do not fit",
    )


def guard(call: Callable[[], T], fault: str) -> T:
    """Return the result of the library, whose errors have no type, and whose panics are no `Exception`."""
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise UserError(f"{fault}: {error}. {AGAIN}.") from None
        raise


def _text(file: Path) -> str:
    return decoded_text(limits.read_bytes(file, limits.TEXT_BYTES, f"{AGAIN}."), file, f"{AGAIN}.")


def json_of(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is no such file."""
    return read_json(file) if file.is_file() else {}
