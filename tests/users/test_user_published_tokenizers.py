"""Files of tokenizers as public pages of GPT-2s describe them: ids as transformers, or a message.

The shapes of the files are those of the pages; tokens and merges are trained here.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from gpt2x.config import TokenizerConfig
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.pretrained import source_tokenizer
from tests.support.tokenizer_files import vocabulary, write

END = "<|endoftext|>"
TEXTS = [
    "The ferry left  the harbour",
    f"a{END}b <s>x</s><pad>",
    " two\n\nlines 12",
    "Über 日本 🙂",
    "[CLS] [SEP] <mask>",
    "",
]


def added(content: str, **flags: bool) -> dict[str, Any]:
    """Return a token as tokenizer_config.json has it."""
    default = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"__type": "AddedToken", "content": content, **default, **flags}


def slow(*specials: str, **files: Any) -> dict[str, Any]:
    """Return vocab.json and merges.txt of byte-level BPE whose vocabulary holds `specials`, and further files."""
    model = json.loads(vocabulary("byte", specials or (END,)))
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    config = files.pop("config", {"model_type": "gpt2"})
    named = {f"{name}.json": content for name, content in files.items()}
    return {"vocab.json": model["vocab"], "merges.txt": merges, "config.json": config, **named}


def fast(kind: str, specials: tuple[str, ...], pre: Any, decoder: Any, normalizer: Any = None, **files: Any) -> dict:
    """Return a tokenizer.json of one kind, its special tokens among the added ones, and further files."""
    model = json.loads(vocabulary(kind, specials))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre, decoder
    if normalizer is not None:
        backend.normalizer = normalizer
    content = json.loads(backend.to_str()) | {"model": model}
    vocab = model["vocab"]
    ids = vocab if isinstance(vocab, dict) else {token: number for number, (token, _) in enumerate(vocab)}
    content["added_tokens"] = [
        {"id": ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for token in sorted(specials, key=ids.__getitem__)
    ]  # fmt: skip
    config = files.pop("config", {"model_type": "gpt2"})
    return {"tokenizer.json": content, "config.json": config} | {f"{n}.json": text for n, text in files.items()}


def byte(specials: tuple[str, ...] = (END,), **files: Any) -> dict:
    """Return tokenizer.json of GPT-2's kind."""
    return fast("byte", specials, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel(), **files)


SPECIAL = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
FIVE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>"}
CLS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
SHAPES: dict[str, dict[str, Any]] = {
    "openai-community/gpt2": byte(tokenizer_config={"model_max_length": 1024}) | slow(),
    "openai-community/gpt2, files of 2019": slow(),
    "distilbert/distilgpt2": byte(tokenizer_config={"model_max_length": 1024}),
    "microsoft/DialoGPT-medium": slow(tokenizer_config={"model_max_length": 1024}),
    "microsoft/DialoGPT-small, with a template": slow(
        tokenizer_config={"model_max_length": 1024, "chat_template": "{{ messages }}", "add_bos_token": False},
    ),
    "microsoft/DialogRPT-updown": slow(special_tokens_map=SPECIAL, tokenizer_config={"model_max_length": 1024}),
    "cerebras/Cerebras-GPT-111M": slow(
        special_tokens_map={role: {k: v for k, v in added(END).items() if k != "__type"} for role in SPECIAL},
        tokenizer_config=GPT2 | {"add_prefix_space": False, "errors": "replace", "model_max_length": 2048,
                                 **{role: added(END) for role in SPECIAL}},
    ),
    "codeparrot/codeparrot": byte(
        special_tokens_map=SPECIAL,
        tokenizer_config=GPT2 | SPECIAL | {"add_prefix_space": False, "name_or_path": "gpt2",
                                           "special_tokens_map_file": None, "model_max_length": 1024},
    ),
    "uer/gpt2-chinese-cluecorpussmall": {
        "vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "日", "本", "the", "##re", "a"]) + "\n",
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 1024,
                                  "tokenize_chinese_chars": True, **CLS, "eos_token": "[SEP]"},
        "config.json": {"model_type": "gpt2", "tokenizer_class": "BertTokenizer"},
    },
    "ckiplab/gpt2-base-chinese": fast(
        "WordPiece", tuple(CLS.values()), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(),
        normalizers.BertNormalizer(lowercase=False),
        config={"model_type": "gpt2", "tokenizer_class": "BertTokenizerFast"},
        tokenizer_config={"do_lower_case": False, **CLS, "tokenizer_class": "BertTokenizerFast", "eos_token": "[SEP]"},
    ),
    "skt/kogpt2-base-v2": fast(
        "characters", tuple(FIVE.values()), pre_tokenizers.Metaspace(), decoders.Metaspace(), normalizers.NFKC(),
        config={"model_type": "gpt2", "eos_token_id": 2},
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **FIVE},
    ),
    "aubmindlab/aragpt2-base": slow(
        config={"model_type": "gpt2", "tokenizer_class": "GPT2Tokenizer"},
        tokenizer_config=GPT2 | SPECIAL | {"do_lower_case": False, "add_prefix_space": False},
        special_tokens_map=SPECIAL,
    ),
    "dbmdz/german-gpt2": byte(special_tokens_map={**SPECIAL, "pad_token": END}, tokenizer_config={"max_len": 1024}),
    "LorenzoDeMattei/GePpeTto": slow(tokenizer_config={"max_len": 1024}),
    "GroNLP/gpt2-small-dutch": byte(
        special_tokens_map=SPECIAL, tokenizer_config=SPECIAL | {"add_prefix_space": False, "model_max_length": 1024},
    ),
    "pierreguillou/gpt2-small-portuguese": slow(
        tokenizer_config={"model_max_length": 1024, "pad_token": END, "special_tokens_map_file": "x"},
        special_tokens_map=SPECIAL | {"pad_token": END},
    ),
    "ai-forever/rugpt3small_based_on_gpt2": slow(
        *FIVE.values(), special_tokens_map=FIVE,
        tokenizer_config=GPT2 | {"add_bos_token": False, "add_prefix_space": False, "errors": "replace",
                                 **{role: added(token) for role, token in FIVE.items()}},
    ),
    "datificate/gpt2-small-spanish": slow(special_tokens_map=SPECIAL, tokenizer_config={"model_max_length": 1024}),
    "PlanTL-GOB-ES/gpt2-base-bne": byte(
        ("<s>", "</s>", "<unk>", "<pad>", "<mask>"),
        tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True, **FIVE, "eos_token": "</s>"},
    ),
    "flax-community/papuGaPT2": byte(
        (END, "<s>", "</s>", "<pad>", "<unk>", "<mask>"), tokenizer_config=GPT2 | SPECIAL,
    ),
    "cahya/gpt2-small-indonesian-522M": slow(
        "<s>", "</s>", "<pad>", "<unk>", END, "<mask>",
        special_tokens_map=SPECIAL, tokenizer_config=SPECIAL | {"model_max_length": 1024},
    ),
    "redrussianarmy/gpt2-turkish-cased": slow(added_tokens={END: 330}, tokenizer_config={"model_max_length": 1024}),
    "NlpHUST/gpt2-vietnamese": byte(("<s>", "<pad>", "</s>", "<unk>", "<mask>", END), tokenizer_config=GPT2 | SPECIAL),
    "asi/gpt-fr-cased-small": slow(
        *FIVE.values(), special_tokens_map=FIVE,
        tokenizer_config=GPT2 | FIVE | {"add_prefix_space": False, "full_tokenizer_file": None},
    ),
    "HooshvareLab/gpt2-fa": byte(
        (END, "<s>", "</s>", "<pad>", "<unk>", "<mask>", "<|startoftext|>"),
        special_tokens_map={"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": "<unk>",
                            "pad_token": "<pad>", "additional_special_tokens": ["<s>", "</s>"]},
        tokenizer_config=GPT2 | {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": "<unk>",
                                 "pad_token": "<pad>", "additional_special_tokens": ["<s>", "</s>"]},
    ),
    "stanford-crfm/alias-gpt2-small-x21": byte(tokenizer_config=GPT2 | SPECIAL | {"model_max_length": 1024}),
    "stanford-crfm/BioMedLM": byte(
        (END, "[PAD]"),
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END},
    ),
    "microsoft/CodeGPT-small-py": slow(
        *FIVE.values(), "<|user|>", special_tokens_map=FIVE, tokenizer_config={"model_max_length": 1024, **FIVE},
        config={"model_type": "gpt2"},
    ),
    "Gustavosta/MagicPrompt-Stable-Diffusion": byte(
        tokenizer_config=GPT2 | SPECIAL | {"add_prefix_space": False, "errors": "replace", "padding_side": "left"},
    ),
    "a fine-tuned model with [PAD] after the vocabulary": slow(
        added_tokens={"[PAD]": 331}, special_tokens_map=SPECIAL | {"pad_token": "[PAD]"},
        tokenizer_config=GPT2 | SPECIAL | {"pad_token": "[PAD]"},
    ),
    "a dialogue model with speakers": byte(
        special_tokens_map={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
                            "additional_special_tokens": ["<speaker1>", "<speaker2>"]},
        tokenizer_config=GPT2 | {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
                                 "additional_special_tokens": ["<speaker1>", "<speaker2>"]},
    ),
    "a model saved by transformers 5": byte(
        tokenizer_config={"tokenizer_class": "TokenizersBackend", "eos_token": END, "extra_special_tokens": ["<x>"]},
    ),
    "a code model with digits apart": fast(
        "byte", (END,), pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        ]), decoders.ByteLevel(),
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END},
    ),
    "a model of characters": fast(
        "characters", (END,), pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse(),
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END},
    ),
}  # fmt: skip
REJECTED = {
    "rinna/japanese-gpt2-small": (
        {"spiece.model": "x", "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "do_lower_case": True},
         "config.json": {"model_type": "gpt2", "tokenizer_class": "T5Tokenizer"}},
        "gpt2x does not have the rules of tokenizer_class=T5Tokenizer",
    ),
    "AI-Sweden-Models/gpt-sw3-126m": (
        {"spiece.model": "x", "tokenizer_config.json": {"tokenizer_class": "GPTSw3Tokenizer"},
         "config.json": {"model_type": "gpt2"}},
        "gpt2x does not have the rules of tokenizer_class=GPTSw3Tokenizer",
    ),
    "openai/gpt-2, files of the first release": ({"encoder.json": {}, "vocab.bpe": "x"}, "rename"),
}  # fmt: skip


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_ids_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    directory = write(SHAPES[name], tmp_path / "tokenizer")
    theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), Tokenizer.load(directory)
    expected = [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    assert [ours.encode(text) for text in TEXTS] == expected
    assert (ours.eos_token, ours.eos_id) == (theirs.eos_token, theirs.eos_token_id)
    assert (ours.special_tokens.get("bos_token"), ours.pad_id) == (theirs.bos_token, theirs.pad_token_id)
    ours.save(tmp_path / "saved")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [again(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == expected
    assert again.special_tokens_map == theirs.special_tokens_map


def test_a_vocabulary_without_an_end_of_text_takes_the_configured_one(tmp_path):
    files = SHAPES["uer/gpt2-chinese-cluecorpussmall"]
    config = {name: value for name, value in files["tokenizer_config.json"].items() if name != "eos_token"}
    directory = write(files | {"tokenizer_config.json": config}, tmp_path / "tokenizer")
    source = SimpleNamespace(tokenizer_dir=directory, path=directory)
    assert source_tokenizer(source, TokenizerConfig(eos_token="[SEP]")).eos_id == 3
    with pytest.raises(UserError, match=r"tokenizer\.eos_token"):
        source_tokenizer(source, TokenizerConfig())


def test_fingerprints_differ_where_ids_do(tmp_path):
    directories = [
        write(
            byte() | {"added_tokens.json": {}, "tokenizer_config.json": {"mask_token": added("x", lstrip=flag)}},
            tmp_path / str(flag),
        )
        for flag in (False, True)
    ]
    first, second = map(Tokenizer.load, directories)
    assert first.encode("a x") != second.encode("a x")
    assert first.fingerprint != second.fingerprint


@pytest.mark.parametrize("name", REJECTED)
def test_what_is_not_read_says_why(name, tmp_path):
    files, message = REJECTED[name]
    with pytest.raises(UserError, match=message):
        Tokenizer.load(write(files, tmp_path / "tokenizer"))
