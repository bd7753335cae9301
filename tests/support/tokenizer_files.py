"""Generated directories of tokenizers: files of all kinds, with tokens in all places (hypothesis)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

EOS = "[EOS]"  # in each vocabulary, and in no text
CORPUS = [
    "The ferry left the harbour before the sun was up. Two of the crew were asleep below; the third counted 12 lamps.",
    "Über die Brücke, naïve café — “quotes” 日本 1234 don't  two  blanks\n\nnew line\ttab",
]
SPECIALS = ("<|endoftext|>", "<s>", "</s>", "<unk>", "<pad>", "[UNK]", "[PAD]", "<mask>", "<spk1>", "<a b>", "the", "é")
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
WORDS = (" ", "  ", "\n", "\n\n", "\t", "the", "The", "ferry", "'s", "12", "x", "é", "É", "e\u0301", "日本", "🙂", "_",
         "▁", ".", ",", "\u00a0", "\u2003", "ﬁ", "İ", "Ω")  # fmt: skip

texts = st.lists(st.sampled_from([*WORDS, *SPECIALS]), max_size=12).map("".join)


@cache
def vocabulary(kind: str, specials: tuple[str, ...]) -> str:
    """Return the JSON of a trained model of one kind, whose vocabulary holds `specials` and EOS."""
    first = list(dict.fromkeys(["[UNK]", EOS, *specials]))
    if kind == "byte":
        model, pre = models.BPE(), pre_tokenizers.ByteLevel(add_prefix_space=False)
        first = list(dict.fromkeys([EOS, *specials]))
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=first, show_progress=False,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )  # fmt: skip
    elif kind == "metaspace":
        first += [f"<0x{byte:02X}>" for byte in range(256)]
        model, pre = models.BPE(unk_token="[UNK]", byte_fallback=True, fuse_unk=True), pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=first, show_progress=False)
    elif kind == "characters":
        model, pre = models.BPE(unk_token="[UNK]"), pre_tokenizers.Split(Regex("."), "isolated")
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=first, show_progress=False)
    elif kind == "WordLevel":
        model, pre = models.WordLevel(unk_token="[UNK]"), pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=first, show_progress=False)
    elif kind == "WordPiece":
        model, pre = models.WordPiece(unk_token="[UNK]"), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=first, show_progress=False)
    else:
        model, pre = models.Unigram(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=first, unk_token="[UNK]", show_progress=False)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre
    backend.train_from_iterator(CORPUS, trainer)
    return json.dumps(json.loads(backend.to_str())["model"])


NORMALIZERS = (
    None, None, None, normalizers.Lowercase(), normalizers.NFC(), normalizers.NFKC(), normalizers.Strip(),
    normalizers.Replace("x", "y"), normalizers.Prepend("▁"), normalizers.StripAccents(),
    normalizers.BertNormalizer(), normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()]),
)  # fmt: skip


def _byte_levels() -> list[Any]:
    byte = pre_tokenizers.ByteLevel
    return [
        byte(add_prefix_space=False), byte(add_prefix_space=False), byte(add_prefix_space=True),
        byte(add_prefix_space=False, use_regex=False),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte(add_prefix_space=False)]),
        pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(r"\s+"), "removed"), byte(add_prefix_space=True, use_regex=False)
        ]),
        pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), byte(add_prefix_space=False)]),
    ]  # fmt: skip


PRE_TOKENIZERS = {
    "byte": _byte_levels(),
    "metaspace": [pre_tokenizers.Metaspace(), pre_tokenizers.Metaspace(prepend_scheme="first"), None],
    "characters": [pre_tokenizers.Split(Regex("."), "isolated"), None],
    "WordLevel": [pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.BertPreTokenizer(),
                  pre_tokenizers.Punctuation()],
    "WordPiece": [pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Whitespace()],
    "Unigram": [pre_tokenizers.Metaspace(), pre_tokenizers.Sequence([
        pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])],
}  # fmt: skip
DECODERS = {
    "byte": decoders.ByteLevel(),
    "metaspace": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "characters": decoders.Fuse(), "WordLevel": None, "WordPiece": decoders.WordPiece(),
    "Unigram": decoders.Metaspace(),
}  # fmt: skip
CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "PreTrainedTokenizer",
           "RobertaTokenizer", "GPTNeoXTokenizerFast", "CodeGenTokenizer", "BertTokenizer", "T5Tokenizer",
           "MyTokenizer", "LlamaTokenizer")  # fmt: skip

flags = st.fixed_dictionaries(
    {}, optional={name: st.booleans() for name in ("lstrip", "rstrip", "single_word", "normalized")}
)
names = st.sampled_from(SPECIALS)


@st.composite
def added_token(draw: Any) -> dict[str, Any]:
    """Return an AddedToken as an object."""
    return {"content": draw(names), "special": draw(st.booleans()), **draw(flags)}


def _typed(token: dict[str, Any]) -> dict[str, Any]:
    return {"__type": "AddedToken", **token}


@st.composite
def directories(draw: Any, kinds: tuple[str, ...] = tuple(PRE_TOKENIZERS)) -> dict[str, Any]:
    """Return name -> content of the files of a tokenizer's directory."""
    kind = draw(st.sampled_from(kinds))
    specials = tuple(draw(st.lists(names, max_size=4, unique=True)))
    model = json.loads(vocabulary(kind, specials))
    files: dict[str, Any] = {}
    slow = kind == "byte" and draw(st.sampled_from(["json", "json", "slow", "both"]))
    if slow in ("slow", "both"):
        files["vocab.json"] = model["vocab"]
        files["merges.txt"] = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    if slow != "slow":
        backend = tokenizers.Tokenizer(models.BPE())
        normalizer, pre = draw(st.sampled_from(NORMALIZERS)), draw(st.sampled_from(PRE_TOKENIZERS[kind]))
        if normalizer is not None:
            backend.normalizer = normalizer
        if pre is not None:
            backend.pre_tokenizer = pre
        if DECODERS[kind] is not None:
            backend.decoder = DECODERS[kind]
        if kind == "byte":
            backend.post_processor = processors.ByteLevel(trim_offsets=draw(st.booleans()))
        size = len(model["vocab"])
        tokens = draw(st.lists(added_token(), max_size=4, unique_by=lambda token: token["content"]))
        ids = model["vocab"] if isinstance(model["vocab"], dict) else {t: i for i, (t, _) in enumerate(model["vocab"])}
        default = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        gap = draw(st.integers(0, 2))
        content = json.loads(backend.to_str())
        content["added_tokens"] = sorted(
            ({"id": ids.get(t["content"], size + gap + n)} | default | t for n, t in enumerate(tokens)),
            key=lambda token: token["id"],
        )
        files["tokenizer.json"] = content | {"model": model}
    if draw(st.booleans()):
        files["tokenizer_config.json"] = draw(_config())
    if draw(st.booleans()):
        files["special_tokens_map.json"] = draw(_special_map())
    if draw(st.booleans()):
        tokens = draw(st.lists(names, max_size=3, unique=True))
        files["added_tokens.json"] = {token: 400 + draw(st.integers(0, 9)) * 10 + n for n, token in enumerate(tokens)}
    if draw(st.integers(0, 4)):
        files["config.json"] = {"model_type": "gpt2"}
        if draw(st.integers(0, 3)) == 0:
            files["config.json"]["tokenizer_class"] = draw(st.sampled_from(CLASSES))
    return files


@st.composite
def _config(draw: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"model_max_length": 64}
    if draw(st.booleans()):
        config["tokenizer_class"] = draw(st.sampled_from(CLASSES))
    if draw(st.booleans()):
        config["add_prefix_space"] = draw(st.booleans())
    if draw(st.integers(0, 5)) == 0:
        config["split_special_tokens"] = draw(st.booleans())
    if draw(st.integers(0, 5)) == 0:
        config["add_bos_token"] = draw(st.booleans())
    token = st.one_of(names, st.none(), added_token().map(_typed))
    for role in draw(st.lists(st.sampled_from([*ROLES, "image_token"]), max_size=4, unique=True)):
        config[role] = draw(token if role in ROLES else names)
    if draw(st.integers(0, 2)) == 0:
        numbers = draw(st.lists(st.integers(300, 420), max_size=4, unique=True))
        config["added_tokens_decoder"] = {str(number): draw(added_token()) for number in numbers}
    extra = draw(st.sampled_from(["", "", "additional_special_tokens", "extra_special_tokens", "dict"]))
    if extra == "dict":
        config["extra_special_tokens"] = {"image_token": draw(names), "boi_token": draw(names)}
    elif extra:
        config[extra] = draw(st.lists(st.one_of(names, added_token().map(_typed)), max_size=3))
    return config


@st.composite
def _special_map(draw: Any) -> dict[str, Any]:
    token = st.one_of(names, added_token())
    content = {role: draw(token) for role in draw(st.lists(st.sampled_from(ROLES), max_size=4, unique=True))}
    key = draw(st.sampled_from(["", "additional_special_tokens", "extra_special_tokens"]))
    if key:
        content[key] = draw(st.lists(names, max_size=3, unique=True))
    return content


def write(files: dict[str, Any], directory: Path) -> Path:
    """Write the files into the new `directory`; return it."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (directory / name).write_text(text, encoding="utf-8")
    return directory
