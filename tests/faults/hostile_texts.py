"""Hostile tokenizers, data, templates, configurations, requests and command lines."""

# ruff: noqa: E501 - a row of a table is one line
from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import seeds
from tests.faults.hostile_weights import Case
from tests.faults.seeds import edited

HUGE = 10**18


def _tokenizer(name: str, change: Callable[[Any], Any], file: str = "tokenizer.json", **options: Any) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("tokenizer", folder / "t")
        if file == "tokenizer.json":  # which only the generic class takes as it is
            edited(
                path / "tokenizer_config.json",
                lambda content: content.update(tokenizer_class="PreTrainedTokenizerFast"),
            )
        edited(path / file, change)
        return path

    return Case("tokenizer.path=", f"{file}: {name}", write, **options)


def _part(part: str, value: Any, **options: Any) -> Case:
    return _tokenizer(f"{part} is {json.dumps(value)[:70]}", lambda content: content.update({part: value}), **options)


def _model(name: str, **changes: Any) -> Case:
    return _tokenizer(f"model: {name}", lambda content: content["model"].update(changes), is_accepted=True)


def _raw(file: str, name: str, content: Callable[[], bytes], remove: tuple[str, ...] = ()) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("tokenizer", folder / "t")
        for each in remove:
            (path / each).unlink(missing_ok=True)
        (path / file).write_bytes(content())
        return path

    return Case("tokenizer.path=", f"{file}: {name}", write)


def _nested(kind: str, key: str, depth: int) -> Any:
    value: Any = {"type": kind, key: []}
    for _ in range(depth):
        value = {"type": kind, key: [value]}
    return value


def _split(regex: str) -> Any:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _replace(regex: str) -> Any:
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": "x" * 1000}


def _charsmap(content: bytes) -> Any:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


ONLY = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZERS = [
    *(_part("pre_tokenizer", _split(regex)) for regex in ("(a+)+$", "(a|a)*b", "(a|aa)+$", "(.*)*!$", "((a*)*)*b", "(?:a+|b)+c",
        "(a+){20,}b", r"(?:\w+\s?)+$", "([a-z]+)*[0-9]")),
    *(_part("normalizer", _replace(regex)) for regex in ("(a+)+$", "(a|a)*b")),
    _part("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100}, is_accepted=True),
    *(_part("pre_tokenizer", _split(regex), is_accepted=True) for regex in ("(", "a{1000000}", "(?<=a*)b", "(" * 5000 + ")" * 5000)),
    _part("pre_tokenizer", _split("((((a{100}){100}){100}){100})"), is_accepted=True),
    _part("normalizer", _charsmap(b"\xff\xff\xff\xff")),
    _part("normalizer", _charsmap(b"\x00\x00\x00\x00"), is_accepted=True),
    _part("normalizer", _charsmap(b"\x08\x00\x00\x00" + b"\xff" * 8), is_accepted=True),
    _part("normalizer", _charsmap(b"\x04\x00\x00\x00" + b"\x01\x02\x03\x7f" + b"abc"), is_accepted=True),
    _part("normalizer", _nested("Sequence", "normalizers", 100)),
    _part("pre_tokenizer", _nested("Sequence", "pretokenizers", 100)),
    _part("decoder", _nested("Sequence", "decoders", 100)),
    _part("post_processor", _nested("Sequence", "processors", 100)),
    _part("decoder", {"type": "Strip", "content": "a", "start": HUGE, "stop": HUGE}, is_accepted=True),
    _part("decoder", {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}, is_accepted=True),
    _part("decoder", {"type": "WordPiece", "prefix": "", "cleanup": True}, is_accepted=True),
    _part("decoder", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}, is_accepted=True),
    _part("pre_tokenizer", {"type": "FixedLength", "length": 0}, is_accepted=True),
    _part("pre_tokenizer", {"type": "FixedLength", "length": HUGE}, is_accepted=True),
    _part("pre_tokenizer", {"type": "Metaspace", "replacement": "ab", "prepend_scheme": "always"}),
    _part("pre_tokenizer", {"type": "Unknown"}),
    _part("truncation", {"max_length": 0, "strategy": "LongestFirst", "stride": HUGE, "direction": "Right"}, is_accepted=True),
    _part("padding", {"strategy": {"Fixed": HUGE}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0,
                      "pad_token": "x"}, is_accepted=True),
    *(_part("post_processor", {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}, is_accepted=True) for single in (
        [{"SpecialToken": {"id": "absent", "type_id": 0}}], [{"SpecialToken": {"id": "a", "type_id": HUGE * HUGE}}])),
    *(_part("model", value, is_accepted="Unigram" in str(value)) for value in (None, [], {}, {"type": "BPE"}, {"type": "BPE", "vocab": {"a": -1}, "merges": []},
        {"type": "BPE", "vocab": {"a": 10**9}, "merges": []}, {"type": "BPE", "vocab": {"a": "0"}, "merges": []},
        {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "absent", "max_input_chars_per_word": HUGE,
         "continuing_subword_prefix": "##"}, {"type": "Unigram", "vocab": [], "unk_id": 7},
        {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": HUGE}, {"type": "Unigram", "vocab": [["a", "x"]], "unk_id": 0},
        {"type": "Unigram", "vocab": [["", 0.0], ["a", -1e308]], "unk_id": 0, "byte_fallback": True})),
    _model("a cache of 10 ** 18 entries", cache_capacity=HUGE),
    _model("a long prefix of continuing words", continuing_subword_prefix="x" * 1000),
    _model("a long suffix of words", end_of_word_suffix="x" * 1000),
    _model("dropout of NaN", dropout=float("nan")),
    _model("dropout of 2", dropout=2),
    _model("an absent unknown token", unk_token="absent"),
    _model("merges of absent tokens", merges=[["x" * 10, "y"]]),
    _model("merges that are no pairs", merges=["abc", ["a"]]),
    _model("merges of numbers", merges=[[1, 2]]),
    *(_tokenizer(f"added_tokens are {str(value)[:50]}", lambda content, value=value: content.update(added_tokens=value))
      for value in ({"a": 1}, [7], [{"id": 0}], [{"id": -1, "content": "x"}], [{"id": 10**12, "content": "x"}],
                    [{"id": True, "content": [], "special": 1}])),
    _tokenizer("an added token without text", lambda content: content["added_tokens"].append(
        {"id": 300, "content": "", "single_word": False, "lstrip": True, "rstrip": True, "normalized": True, "special": True}),
        is_accepted=True),
    _tokenizer("300,000 added tokens", lambda content: content.update(added_tokens=[
        {"id": 300 + i, "content": f"<{i}>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for i in range(300_000)]), is_accepted=True),
    _raw("tokenizer.json", "nested 100,000 deep", lambda: b"[" * 100_000),
    _raw("tokenizer.json", "70 MB", lambda: b'{"a": "' + b"x" * (70 << 20) + b'"}'),
    _raw("tokenizer.json", "20 MB of objects", lambda: b'{"a": [' + b'{"b":0},' * (2 << 20) + b"0]}"),
    _raw("tokenizer.json", "a vocabulary of three million", lambda: json.dumps(
        {"model": {"type": "BPE", "vocab": {f"t{i}": i for i in range(3_000_000)}, "merges": []}}).encode()),
    _raw("tokenizer.json", "no text", lambda: b"\xff\xfe\x00{"),
    _raw("vocab.json", "nested", lambda: b'{"a":' * 50_000, ONLY),
    _raw("vocab.json", "ids of 10 ** 12", lambda: json.dumps({"a": 10**12}).encode(), ONLY),
    _raw("vocab.json", "ids that are texts", lambda: json.dumps({"a": "b"}).encode(), ONLY),
    _raw("merges.txt", "70 MB", lambda: b"a b\n" * (18 << 20), ONLY),
    _raw("merges.txt", "no text", lambda: b"#version\n\xff\xfe\n", ONLY),
    _raw("merges.txt", "lines of three words", lambda: b"a b c\n" * 10, ONLY),
    _raw("merges.txt", "words that are no tokens", lambda: b"qqq www\n", ONLY),
    *(_tokenizer(f"{key} is {str(value)[:40]}", lambda content, key=key, value=value: content.update({key: value}),
                 "tokenizer_config.json", is_accepted=True)
      for key, value in (("eos_token", 7), ("eos_token", {"content": 7}), ("eos_token", []), ("tokenizer_class", {}),
                         ("tokenizer_class", []), ("added_tokens_decoder", 7), ("added_tokens_decoder", {"x": {}}),
                         ("added_tokens_decoder", {"-1": {"content": "x"}}), ("added_tokens_decoder", {"1" * 400: {"content": "x"}}),
                         ("added_tokens_decoder", {"1": {"content": "x", "special": "yes"}}), ("extra_special_tokens", 7),
                         ("additional_special_tokens", [7]), ("additional_special_tokens", [{"content": []}]),
                         ("add_prefix_space", "no"), ("model_max_length", float("nan")), ("chat_template", "{{ 7 }}"),
                         ("auto_map", {"AutoTokenizer": ["x.X", None]}), ("split_special_tokens", 3))),
]  # fmt: skip


def _data(name: str, content: Callable[[], bytes], **options: Any) -> Case:
    def write(folder: Path) -> Path:
        path = folder / name.split(":")[0]
        path.write_bytes(content())
        return path

    return Case("dataset.path=", name, write, **options)


def _parquet() -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.table({"text": ["a", "b"]}), stream)
    return stream.getvalue()


DATA = [
    _data("a.txt: 60 MB without a blank", lambda: b"a" * (60 << 20)),
    _data("a.txt: 8 MB of characters without a blank", lambda: b"a" * (8 << 20), is_accepted=True),
    _data("a.txt: 16 MB of blanks", lambda: b" " * (16 << 20), is_accepted=True),
    _data("a.txt.gz: 1 GB from 1 MB", lambda: gzip.compress(b"a b " * (256 << 20), 9)),
    _data("a.txt.gz: cut off", lambda: gzip.compress(b"some text " * 1000)[:-40]),
    _data("a.txt: zeros", lambda: b"\0" * 1000),
    _data("a.txt: a pickle", lambda: b"\x80\x04K\x01."),
    _data("a.jsonl: nested 100,000 deep", lambda: b'{"text": ' + b"[" * 100_000 + b"\n"),
    _data("a.jsonl: nested 200 deep", lambda: b'{"text": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}\n"),
    _data("a.jsonl: a number of 10 ** 5 digits", lambda: b'{"text": ' + b"9" * 100_000 + b"}\n"),
    _data("a.jsonl: a line of 30 MB of objects", lambda: b'{"text": "a", "x": [' + b"{}," * (10 << 20) + b"{}]}\n"),
    _data("a.jsonl: a key twice", lambda: b'{"text": "a", "text": "b"}\n'),
    _data("a.json: 30 MB of empty objects", lambda: b"[" + b"{}," * (10 << 20) + b"{}]"),
    _data("a.json: nested", lambda: b'{"data": ' * 50_000),
    _data(
        "a.csv: 200,000 columns",
        lambda: b"text," + b"c," * 200_000 + b"c\n" + b"a," * 200_001 + b"a\n",
        is_accepted=True,
    ),
    _data("a.csv: a quote that never ends", lambda: b'text\n"' + b"a b\n" * 1_000_000),
    _data("a.csv: a field of zeros", lambda: b"text\n\0\n"),
    _data("a.tsv: a quote that never ends", lambda: b'text\tb\n"' + b"a b\n" * 1_000_000),
    _data("a.tsv: many quotes", lambda: b"text\tb\n" + b'"a""' * 200_000 + b"\tb\n", is_accepted=True),
    _data("a.parquet: no parquet", lambda: b"PAR1" + b"\xff" * 100 + b"PAR1"),
    _data("a.parquet: a footer beyond the file", lambda: b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1"),
    _data("a.parquet: a damaged footer", lambda: _parquet()[:-20] + b"\xff" * 12 + _parquet()[-8:]),
]


def _file(entry: str, name: str, suffix: str, content: Callable[[], str], **options: Any) -> Case:
    def write(folder: Path) -> Path:
        (folder / f"x{suffix}").write_text(content())
        return folder / f"x{suffix}"

    return Case(entry, f"{suffix}: {name}", write, **options)


def _laughs(levels: int = 9) -> str:
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return (
        "\n".join(lines)
        + f"\nwith_input: *a{levels - 1}\nwithout_input: *a{levels - 1}\nmodel:\n  model_config: *a{levels - 1}\n"
    )


YAMLS = {
    "a billion laughs": _laughs,
    "an alias of itself": lambda: "a: &a [*a]\nwith_input: *a\n",
    "nested 100,000 deep": lambda: "[" * 100_000,
    "blocks nested 3,000 deep": lambda: "\n".join(" " * i + "a:" for i in range(1_000)),
    "2 MB": lambda: "a: " + "x" * (2 << 20),
    "an object of Python": lambda: "a: !!python/object/apply:os.system ['touch /tmp/executed']\n",
    "a tag that nobody knows": lambda: "a: !x {}\n",
    "a merge of everything": lambda: "a: &a {b: 1}\nc: {<<: [" + ",".join(["*a"] * 10_000) + "]}\n",
    "control characters": lambda: "a: \x07\n",
    "a date that is none": lambda: "with_input: 2020-99-99\nwithout_input: x\n",
    "a number of 10 ** 5 digits": lambda: "with_input: " + "9" * 100_000 + "\nwithout_input: x\n",
}


def _mindformers(name: str, content: Callable[[], str]) -> Case:
    def write(folder: Path) -> Path:
        path = seeds.copy("mindformers", folder / "m")
        (path / "a.yaml").write_text(content())
        return path / "a.ckpt"

    return Case("load=", f"MindFormers' YAML: {name}", write, is_accepted=True)


FILES = [
    *(_file("template=", name, ".yaml", content) for name, content in YAMLS.items()),
    *(_mindformers(name, content) for name, content in YAMLS.items()),
    *(_mindformers(f"{key} is {value}", lambda key=key, value=value: f"model: {{model_config: {{num_heads: 2, {key}: {value}}}}}")
      for key, value in (("num_heads", 0), ("num_heads", ".nan"), ("num_heads", "9" * 30), ("hidden_dropout_rate", ".nan"),
                         ("moe_config", "{expert_num: []}"), ("hidden_act", "[]"), ("num_layers", "1000000000"))),
    *(_file("template=", name, ".yaml", lambda text=text: f"with_input: {json.dumps(text)}\nwithout_input: x\n") for name, text in (
        ("a format of 10 ** 9 characters", "{instruction:>1000000000} {input}"), ("attributes", "{instruction.__class__} {input}"),
        ("an index", "{instruction[0]} {input}"), ("a conversion", "{instruction!r} {input}"), ("nested formats", "{instruction:{input}}"))),
    _file("prompts_file=", "nested", ".jsonl", lambda: '{"prompt": ' + "[" * 100_000),
    _file("prompts_file=", "a list", ".jsonl", lambda: "[1]\n"),
    _file("prompts_file=", "30 MB of objects", ".jsonl", lambda: '{"prompt": "a", "x": [' + "{}," * (10 << 20) + "{}]}\n"),
]  # fmt: skip


def _request(name: str, table: Any, params: Any = None) -> Case:
    return Case("serve", name, lambda _: (table() if callable(table) else table, params))


SERVE = [
    _request("no prompt", {}),
    _request("a number as prompt", {"prompt": [7]}),
    _request("a list as prompt", {"prompt": [["a"]]}),
    _request("100,000 prompts", lambda: {"prompt": ["a"] * 100_000}),
    _request("a prompt of 100 MB", lambda: {"prompt": ["a" * (100 << 20)]}),
    *(_request(f"{key} is {str(value)[:30]}", {"prompt": ["a"]}, {key: value}) for key, value in (
        ("max_new_tokens", 10**12), ("max_new_tokens", -1), ("max_new_tokens", "7"), ("max_new_tokens", 1.5), ("temperature", float("nan")),
        ("temperature", float("inf")), ("temperature", -1.0), ("top_k", -5), ("top_k", 10**30), ("top_p", 2.0), ("seed", "x"),
        ("seed", 10**40), ("seed", -1), ("repetition_penalty", 0.0), ("eos_ids", ["a"]), ("batch_size", 10**9), ("unknown", 1),
        ("draft", "/etc"), ("weights", "x"), ("do_sample", "yes"))),
]  # fmt: skip

LINES = [
    Case("command line", f"{key}={value}", lambda _, key=key, value=value: [f"{key}={value}"])
    for key, value in (
        *(("optimizer.learning_rate", value) for value in ("nan", "inf", "-inf", ".nan", "1e400", "-1", "[1]", "x")),
        ("trainer.max_steps", "1e99"), ("trainer.max_steps", "-1"), ("trainer.max_steps", "9" * 40), ("seed", "9" * 40),
        ("seed", "nan"), ("model.num_layers", "1000000000"), ("model.hidden_size", "9999999999"), ("model.dropout", "nan"),
        ("trainer.seq_len", "0"), ("trainer.global_batch_size", "9" * 30), ("schedule.warmup_ratio", "nan"),
        ("optimizer.weight_decay", "inf"), ("trainer.clip_norm", "nan"), ("dataset.val_fraction", "nan"),
    )
]  # fmt: skip

TEXTS = [*TOKENIZERS, *DATA, *FILES, *SERVE, *LINES]
