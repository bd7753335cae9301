"""Tokenizers that users bring, read and written as transformers' AutoTokenizer reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from gpt2x.convert.tokenizer_files import copy_tokenizer, special_ids
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError
from gpt2x.generate.streaming import TextStream
from tests.support.in_process import run
from tests.support.small_runs import small
from tests.support.tokenizer_files import CORPUS, EOS, directories, texts, vocabulary, write

REASONS = (
    r"gpt2x does not have the rules of tokenizer_class=(T5Tokenizer|LlamaTokenizer)",
    r"but transformers reads it as a \w+, which is \w+\. Write",
    r"The end-of-text token .* is not in the tokenizer's vocabulary",
    r"has no tokenizer: tokenizer\.json, or vocab\.json and merges\.txt",
)


def ids_of(tokenizer: Any, samples: list[str]) -> list[list[int]] | None:
    """Return what transformers' tokenizer makes of texts; None if it fails."""
    try:
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in samples]
    except Exception:
        return None


@pytest.mark.parity
@given(files=directories(), samples=st.lists(texts, min_size=1, max_size=4))
def test_a_directory_is_read_and_saved_as_transformers_reads_it(files, samples):
    transformers = pytest.importorskip("transformers")
    with TemporaryDirectory() as folder:
        directory = write(files, Path(folder) / "tokenizer")
        try:
            theirs = transformers.AutoTokenizer.from_pretrained(directory)
            expected = ids_of(theirs, samples)
        except Exception:
            theirs, expected = None, None
        try:
            ours = Tokenizer.load(directory, EOS)
            ids = [ours.encode(text) for text in samples]
        except UserError as error:
            if expected is not None and not any(re.search(reason, str(error)) for reason in REASONS):
                raise
            return
        if expected is None:
            return
        # a token that only the class names and the vocabulary lacks is none of ours
        extra = set(theirs.get_vocab()) - set(ours._backend.get_vocab(with_added_tokens=True))
        kept = [n for n, text in enumerate(samples) if not any(token in text for token in extra)]
        assert [ids[n] for n in kept] == [expected[n] for n in kept], extra
        named = {role: token for role, token in theirs.special_tokens_map.items() if token not in extra}
        assert named | {"eos_token": ours.eos_token} == ours.special_tokens
        assert ours.eos_token in (theirs.eos_token, EOS)
        assert ours.encode_batch(samples) == ids
        saved = Path(folder) / "saved"
        ours.save(saved)
        again = Tokenizer.load(saved)
        assert again.fingerprint == ours.fingerprint
        assert [again.encode(text) for text in samples] == ids
        assert again.special_tokens == ours.special_tokens
        assert ids_of(transformers.AutoTokenizer.from_pretrained(saved), samples) == ids
        again.save(Path(folder) / "again")
        for file in saved.iterdir():
            assert file.read_bytes() == (Path(folder) / "again" / file.name).read_bytes(), file.name


def bpe_files(**config: Any) -> dict[str, Any]:
    """Return vocab.json and merges.txt of byte-level BPE with `<|endoftext|>`, and a tokenizer_config.json."""
    model = json.loads(vocabulary("byte", ("<|endoftext|>",)))
    merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
    config = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64, **config}
    return {"vocab.json": model["vocab"], "merges.txt": merges, "tokenizer_config.json": config}


def test_tokens_beside_the_vocabulary_are_one_id_each(tmp_path):
    files = bpe_files()
    size = len(files["vocab.json"])
    files["added_tokens.json"] = {"<speaker1>": 400, "<speaker2>": 401, "<pad>": 402}
    files["special_tokens_map.json"] = {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    tokenizer = Tokenizer.load(write(files, tmp_path / "tokenizer"))
    the = tokenizer.encode("the")
    assert tokenizer.encode("<speaker1>the<speaker2>the<pad>") == [size, *the, size + 1, *the, size + 2]
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (size + 3, size + 2)


def test_an_end_of_text_token_beside_the_vocabulary(tmp_path):
    files = bpe_files()
    files["added_tokens.json"] = {"</s>": 330}
    files["special_tokens_map.json"] = {"eos_token": "</s>"}
    tokenizer = Tokenizer.load(write(files, tmp_path / "tokenizer"))
    assert (tokenizer.eos_token, tokenizer.eos_id) == ("</s>", len(files["vocab.json"]))


def test_a_prefix_space_is_a_blank_before_the_first_word(tmp_path):
    plain = Tokenizer.load(write(bpe_files(), tmp_path / "plain"))
    prefixed = Tokenizer.load(write(bpe_files(add_prefix_space=True), tmp_path / "prefixed"))
    assert prefixed.encode("The ferry") == plain.encode(" The ferry") != plain.encode("The ferry")
    plain.save(tmp_path / "saved")  # with a tokenizer.json that says false
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    (tmp_path / "saved" / "tokenizer_config.json").write_text(json.dumps(config | {"add_prefix_space": True}))
    assert Tokenizer.load(tmp_path / "saved").fingerprint == prefixed.fingerprint
    assert prefixed.token_bytes() is None


def test_bos_eos_pad_and_sep_are_kept_by_saving_and_copying(tmp_path):
    files = bpe_files(bos_token="<B>", eos_token="<E>", pad_token="<P>", sep_token="<S>")
    files["tokenizer_config.json"]["additional_special_tokens"] = ["<X>"]
    size = len(files["vocab.json"])
    directory = write(files, tmp_path / "tokenizer")
    ids = {"bos_token": size, "eos_token": size + 1, "sep_token": size + 2, "pad_token": size + 3, "unk_token": 1}
    assert special_ids(directory) == ids
    Tokenizer.load(directory).save(tmp_path / "saved")
    (tmp_path / "copied").mkdir()
    copy_tokenizer(directory, tmp_path / "copied")
    for other in (tmp_path / "saved", tmp_path / "copied"):
        assert special_ids(other) == ids
        assert Tokenizer.load(other).encode("<X>") == [size + 4]


def test_a_class_that_only_config_json_names_is_copied(tmp_path):
    files = bpe_files()
    del files["tokenizer_config.json"]
    backend = tokenizers.Tokenizer(models.BPE(files["vocab.json"], []))
    backend.normalizer, backend.decoder = normalizers.Lowercase(), decoders.ByteLevel()
    files["tokenizer.json"] = json.loads(backend.to_str())
    files["config.json"] = {"model_type": "gpt2"}  # transformers reads GPT2Tokenizer, which has no normalizer
    directory = write(files, tmp_path / "tokenizer")
    (tmp_path / "copied").mkdir()
    copy_tokenizer(directory, tmp_path / "copied")
    tokenizer = Tokenizer.load(directory)
    assert tokenizer.encode("The") != tokenizer.encode("the")
    assert Tokenizer.load(tmp_path / "copied").fingerprint == tokenizer.fingerprint


def test_checkpoints_of_earlier_versions_keep_their_normalizer(tmp_path):
    """They named GPT-2's class for every tokenizer.json."""
    trained = byte_level_bpe.train(CORPUS, 300)
    trained._backend.normalizer = normalizers.Lowercase()
    trained._backend.save(str(tmp_path / "tokenizer.json"))
    roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    config = {"tokenizer_class": "GPT2Tokenizer", **roles, "add_prefix_space": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"clean_up_tokenization_spaces": False}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("The") == tokenizer.encode("the")
    assert tokenizer.loss == "its normalizer (Lowercase) changes texts"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"spiece.model": "x"}, "spiece.model is a SentencePiece model, which gpt2x does not read"),
        ({"encoder.json": {}, "vocab.bpe": "x"}, "OpenAI's names of vocab.json and merges.txt; rename"),
        ({"vocab.txt": "a\nb\n"}, 'vocab.txt is read if tokenizer_config.json has "tokenizer_class": "BertTokenizer"'),
        ({"tokenizer.json": "[" * 100_000}, "nested too deeply"),
        (bpe_files() | {"tokenizer_config.json": {"tokenizer_class": "T5Tokenizer"}}, "tokenizer_class=T5Tokenizer"),
        (bpe_files(add_prefix_space="no"), 'add_prefix_space="no" must be true or false'),
        (bpe_files(added_tokens_decoder={"a": {"content": "b"}}), "the id 'a' must be a whole number"),
        (bpe_files() | {"vocab.json": {"a": 2**32}}, "has the id 4294967296"),
        (bpe_files() | {"merges.txt": "no version"}, "vocab.json and merges.txt do not fit"),
    ],
)
def test_what_is_not_read_is_named(files, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        Tokenizer.load(write(files, tmp_path / "tokenizer"))


def test_the_vocabulary_of_bert(tmp_path):
    """GPT-2s in Chinese have vocab.txt and BertTokenizer."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "日", "本", "the", "##re"]
    files = {"vocab.txt": "\n".join(vocab) + "\n", "tokenizer_config.json": {"tokenizer_class": "BertTokenizer"}}
    tokenizer = Tokenizer.load(write(files, tmp_path / "tokenizer"), "[SEP]")
    assert tokenizer.encode("日本 There x[SEP]") == [5, 6, 7, 8, 1, 3]
    assert tokenizer.token_bytes() is None
    assert tokenizer.loss.startswith("WordPiece: BertNormalizer, BertPreTokenizer may change blanks and letters, and")
    tokenizer.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.run
def test_a_unigram_tokenizer_trains_is_evaluated_and_generates(tmp_path):
    corpus = small(tmp_path)
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["[UNK]", EOS], unk_token="[UNK]", show_progress=False
    )
    backend.train_from_iterator([(tmp_path / "corpus.txt").read_text()], trainer)
    (tmp_path / "unigram").mkdir()
    backend.save(str(tmp_path / "unigram" / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    (tmp_path / "unigram" / "tokenizer_config.json").write_text(json.dumps(config))
    options = [*corpus, "model.num_layers=1", "model.vocab_size=null", f"tokenizer.path={tmp_path}/unigram"]
    options += ["tokenizer.vocab_size=null", "trainer.max_steps=2"]
    with pytest.raises(UserError, match=r"trainer\.best_metric=val/bits_per_byte cannot be computed: decoding may not"):
        run("train", *options, "trainer.best_metric=val/bits_per_byte")
    trained = run("train", *options)
    assert "decoding may not return a text (Unigram: Metaspace may change blanks" in " ".join(trained.stdout.split())
    load = [f"load={trained.run_dir}", f"paths.outputs={tmp_path}/outputs", f"paths.cache={tmp_path}/cache"]
    output = tmp_path / "results.json"
    run("evaluate", *load, "dataset=text", f"dataset.val_path={tmp_path}/corpus.txt", "evaluation.protocols=[strided]",
        "evaluation.bootstrap_resamples=0", "tracker=none", f"output={output}")  # fmt: skip
    results = json.loads(output.read_text())["results"]["strided"]
    assert results["bits_per_byte"] is None
    assert results["num_tokens"] > 100
    text = run("predict", *load, "prompts=[the cat]", "generation.max_new_tokens=8").stdout
    assert re.fullmatch(
        r"the cat( [a-z]+){8}", text.splitlines()[0]
    )  # the completion keeps the blank of its first word


def load(files: dict[str, Any], folder: str) -> Tokenizer | None:
    """Return the tokenizer of a generated directory, or None if it is rejected."""
    try:
        return Tokenizer.load(write(files, Path(folder) / "tokenizer"), EOS)
    except UserError:
        return None


@pytest.mark.run  # trains six small vocabularies
@given(files=directories(), pieces=st.lists(texts, min_size=1, max_size=5))
def test_cutting_before_whitespace_changes_no_id(files, pieces):
    with TemporaryDirectory() as folder:
        tokenizer = load(files, folder)
    if tokenizer is None or not tokenizer.cuts_at_whitespace:
        return
    text = "".join(pieces)
    cuts = [n for n in range(1, len(text)) if text[n] in " \n" and not text[n - 1].isspace()]
    parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [id for part in parts for id in tokenizer.encode(part)] == tokenizer.encode(text)


@given(files=directories(), text=texts)
def test_a_stream_of_tokens_is_the_decoded_text(files, text):
    with TemporaryDirectory() as folder:
        tokenizer = load(files, folder)
    if tokenizer is None:
        return
    ids = tokenizer.encode(text)
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.end()]) == tokenizer.decode(ids)


@given(files=directories(), text=texts)
def test_bytes_of_tokens_are_those_of_the_text_or_unknown(files, text):
    with TemporaryDirectory() as folder:
        tokenizer = load(files, folder)
    if tokenizer is None:
        return
    sizes = tokenizer.token_bytes()
    assert (sizes is None) == (tokenizer.loss is not None)
    specials = {token.content: token for token in tokenizer._backend.get_added_tokens_decoder().values()}
    if sizes is None or any(token.special and token.content in text for token in specials.values()):
        return
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sizes[ids].sum() == len(text.encode())


HOSTILE = (
    None,
    True,
    -1,
    2**32,
    1e9,
    "",
    "x",
    [],
    {},
    [[]],
    [1],
    {"type": "x"},
    "\ud800",
    [["a", "b", "c"]],
    {"a": 0, "b": 0},
)


@st.composite
def broken(draw: Any) -> dict[str, Any]:
    """Return the files of a directory, a part of whose JSON is replaced or removed."""
    files = json.loads(json.dumps(draw(directories())))
    names = [name for name in files if name.endswith(".json")]
    for _ in range(draw(st.integers(1, 2))):
        node, key = files, draw(st.sampled_from(names))
        for _ in range(draw(st.integers(0, 5))):
            inner = node[key]
            keys = (
                list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
            )
            if not keys:
                break
            node, key = inner, draw(st.sampled_from(keys))
        if node is files or draw(st.booleans()):
            node[key] = draw(st.sampled_from(HOSTILE))
        else:
            del node[key]
    return files


@given(files=broken(), text=texts)
def test_broken_files_are_a_message_or_a_tokenizer(files, text):
    with TemporaryDirectory() as folder:
        contents = {name: value if name.endswith(".txt") else json.dumps(value) for name, value in files.items()}
        directory = write(contents, Path(folder) / "tokenizer")
        try:
            tokenizer = Tokenizer.load(directory, EOS)
            tokenizer.decode(tokenizer.encode(text))
            tokenizer.token_bytes()
            message = "."
        except UserError as error:
            message = str(error)
        assert message.endswith(".")
        assert "\n" not in message
