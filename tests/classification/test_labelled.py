"""Labelled texts: tables, JSON lines, labels, parts, mistakes; MindRecord rows against the reference's."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from gpt2x.config import DatasetConfig, TokenizerConfig
from gpt2x.config.options import read_option
from gpt2x.data.mindrecord import write_rows
from gpt2x.data.prepare import prepare
from gpt2x.data.rows.labelled import LabelledRows
from gpt2x.data.sampling import batches
from gpt2x.data.sources.labelled import Labelled
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.data.tokenizers import byte_level_bpe
from gpt2x.errors import UserError

FOLDERS = {"sst2": "sst-2", "cola": "cola", "ag_news": "ag_news", "imdb": "imdb"}
SIZES = {"sst2": (67_349, 872), "cola": (8_551, 527), "ag_news": (6_000, 800), "imdb": (3_000, 1_000)}
NAMES = {
    "sst2": ["negative", "positive"],
    "cola": ["unacceptable", "acceptable"],
    "ag_news": ["World", "Sports", "Business", "Sci/Tech"],
    "imdb": ["negative", "positive"],
}


def dataset(name: str, **changes) -> DatasetConfig:
    return replace(read_option("dataset", name, DatasetConfig), **changes)


def written(folder, name: str, text: str):
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return byte_level_bpe.train(["good film , bad film , some words more"] * 3, 280)


def test_a_csv_with_quotes_newlines_and_a_header(tmp_path):
    written(tmp_path, "train.csv", 'label,text\npos," ""So good"", it\nsaid"\nneg,bad\n')
    written(tmp_path, "dev.csv", "text,label\nfine,pos\n")
    corpus = Labelled(dataset("labelled_text", path=str(tmp_path)), tmp_path)
    assert [example[:2] for example in corpus.examples("train")] == [('"So good", it\nsaid', "pos"), ("bad", "neg")]
    assert [example[:2] for example in corpus.examples("val")] == [("fine", "pos")]
    assert corpus.labels() == ["neg", "pos"]
    assert [piece.text for piece in corpus.pieces("train")] == ['"So good", it\nsaid', "bad"]


def test_json_lines_with_numbers_as_labels(tmp_path):
    lines = [{"text": f"t{i}", "label": i} for i in (10, 9, 2)]
    file = written(tmp_path, "all.jsonl", "\n".join(map(json.dumps, lines)) + "\n")
    corpus = Labelled(dataset("labelled_text", train_path=str(file)), tmp_path)
    assert corpus.labels() == ["2", "9", "10"]
    assert not corpus.has("val")


def test_a_header_is_told_from_a_row(tmp_path):
    content = "0\tbad\n1\tgood\n"
    columns = {"columns": ["label", "text"]}
    for text in (content, "label\ttext\n" + content):
        file = written(tmp_path, "train.tsv", text)
        corpus = Labelled(dataset("labelled_text", train_path=str(file), **columns), tmp_path)
        assert [example[:2] for example in corpus.examples("train")] == [("bad", "0"), ("good", "1")]


def test_one_file_is_divided_by_the_seed(tmp_path):
    rows = "".join(f"text {i},{i % 2}\n" for i in range(50))
    file = written(tmp_path, "all.csv", "text,label\n" + rows)

    def parts(seed):
        corpus = Labelled(dataset("labelled_text", path=str(file), split_seed=seed), tmp_path)
        return [[example.text for example in corpus.examples(split)] for split in ("train", "val")], corpus.notes

    (train, val), notes = parts(0)
    assert len(val) == 5
    assert sorted(train + val) == sorted(f"text {i}" for i in range(50))
    assert parts(0)[0] == [train, val] != parts(1)[0]
    assert notes == ["5 of 50 examples drawn for validation (seed 0)"]


@pytest.mark.parametrize(
    ("name", "content", "changes", "parts"),
    [
        ("x.csv", "text,label\na,b,c\n", {}, ["line 2", "3 fields instead of 2"]),
        ("x.csv", 'text,label\n"a"b,c\n', {}, ["line 2", "not CSV"]),
        ("x.csv", "review,label\na,b\n", {}, ["'review', 'label'", "dataset.text_column"]),
        ("x.csv", "text,label\na,\n", {}, ["line 2", "empty 'label'"]),
        ("x.csv", "text,label\n", {}, ["no example"]),
        ("x.csv", "text,label\na,x\nb,x\n", {}, ["dataset.label_column=label", "'x'"]),
        ("x.csv", "text,label\na,1\nb,2\n", {"label_names": {"1": "y", "2": "y"}}, ["'y', 'y'"]),
        ("x.jsonl", '{"text": "a"}\n', {}, ["line 1", "'label'", "dataset.label_column"]),
        ("x.jsonl", "nothing\n", {}, ["line 1", "not JSON"]),
        ("x.txt", "a", {}, ["labelled texts are read from .jsonl, .json, .csv, .tsv, .parquet"]),
    ],
)
def test_mistakes_name_file_and_line(tmp_path, name, content, changes, parts):
    file = written(tmp_path, name, content)
    with pytest.raises(UserError) as caught:
        Labelled(dataset("labelled_text", train_path=str(file), **changes), tmp_path).labels()
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", [*FOLDERS, "labelled_text"])
def test_without_a_path_or_a_checksum_nothing_is_downloaded(tmp_path, name):
    with pytest.raises(UserError, match=rf"dataset.path=null: dataset={name} needs a local dataset.path="):
        Labelled(dataset(name), tmp_path)


def test_a_label_that_training_has_not_is_refused(tmp_path, tokenizer):
    written(tmp_path, "train.csv", "text,label\na,x\nb,y\n")
    written(tmp_path, "val.csv", "text,label\na,z\n")
    with pytest.raises(UserError, match=r"val\.csv, line 2 has the label 'z', which is none of 'x', 'y'"):
        prepared(dataset("labelled_text", path=str(tmp_path)), tmp_path, tokenizer)


def prepared(config: DatasetConfig, folder, tokenizer, seq_len: int = 8, labels=None, **options):
    return prepare(
        config,
        TokenizerConfig(name="x"),
        LabelledRows(seq_len, labels),
        cache=folder / "cache",
        checkpoint_tokenizer=tokenizer,
        **options,
    )


def rows_of(split):
    found = list(batches(split, batch_size=500, seed=0, epoch=0, shuffle=False, drop_last=False))
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def test_rows_are_padded_cut_and_cached(tmp_path, tokenizer):
    long = "good film " * 20
    written(tmp_path, "train.csv", f'text,label\nbad film,neg\n"{long}",pos\n"",pos\n')
    written(tmp_path, "dev.csv", "text,label\ngood,pos\n")
    config = dataset("labelled_text", path=str(tmp_path))
    data = prepared(config, tmp_path, tokenizer)
    rows = rows_of(data.train)
    ids, num = tokenizer.encode("bad film"), len(tokenizer.encode(long.strip()))
    assert rows["input_ids"][0].tolist() == ids + [tokenizer.eos_id] * (8 - len(ids))
    assert rows["attention_mask"].sum(axis=1).tolist() == [len(ids), 8, 1]
    assert rows["input_ids"][2, 0] == tokenizer.eos_id
    assert rows["labels"].tolist() == [[0], [1], [1]]
    assert data.labels == ("neg", "pos")
    assert data.train.dropped_tokens == num - 8
    assert data.summary.notes == (
        "1 texts of train.csv are empty: each is one end-of-text token",
        f"1 of 3 train texts are cut to their first 8 tokens ({num - 8} tokens lost)",
    )
    again = prepared(config, tmp_path, tokenizer)
    assert (again.fingerprint, again.train, again.summary.notes) == (
        data.fingerprint, data.train, data.summary.notes
    )  # fmt: skip
    assert prepared(config, tmp_path, tokenizer, splits=("val",), labels=("neg", "pos", "other")).labels[2] == "other"


def test_mindrecord_files_of_others(tmp_path, tokenizer):
    """Padded on the left, labels of one value a row, another length than seq_len."""
    ids = np.array([[0, 0, 5, 6], [1, 2, 3, 4]], np.int32)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1]], np.int32)
    labels = np.array([[0], [2]], np.int32)
    write_rows(tmp_path / "train.mindrecord", [(ids, mask, labels)], "x")
    config = dataset("labelled_text", path=str(tmp_path))
    data = prepared(config, tmp_path, tokenizer)
    assert data.labels == ("0", "1", "2")
    assert (data.train.num_blocks, data.train.block_len, data.train.num_tokens) == (2, 4, 6)
    assert rows_of(data.train)["labels"].tolist() == [[0], [2]]
    with pytest.raises(UserError, match=r"labels \[2\], not one class from 0 to 1"):
        prepared(config, tmp_path, tokenizer, splits=("train",), labels=("a", "b"))
    write_rows(tmp_path / "blocks.mindrecord", [(ids, mask, ids)], "x")
    with pytest.raises(UserError, match="4 labels, not one class per row"):
        prepared(replace(config, path=str(tmp_path / "blocks.mindrecord")), tmp_path, tokenizer)


def test_mindrecord_files_of_the_reference(tmp_path, tokenizer):
    """Its schema: int64, the class as a scalar of an open shape."""
    from mindspore.mindrecord import FileWriter

    writer = FileWriter(str(tmp_path / "train.mindrecord"))
    names = ("input_ids", "attention_mask", "labels")
    writer.add_schema({name: {"type": "int64", "shape": [-1]} for name in names})
    ids, mask = np.array([3, 4, 0, 0]), np.array([1, 1, 0, 0])
    writer.write_raw_data([{"input_ids": ids, "attention_mask": mask, "labels": np.asarray(label)} for label in (1, 0)])
    writer.commit()
    names = {"label_names": {"0": "bad", "1": "good"}}
    data = prepared(dataset("labelled_text", path=str(tmp_path), **names), tmp_path, tokenizer)
    rows = rows_of(data.train)
    assert data.labels == ("bad", "good")
    assert rows["input_ids"].dtype == np.int32
    assert rows["input_ids"].tolist() == [ids.tolist()] * 2
    assert rows["labels"].reshape(-1).tolist() == [1, 0]


# ---- real data, against the reference's preprocessing


def reference_texts(name: str, path) -> list[tuple[str, int]]:
    """(text, class) of each line as MindFormers' script takes them apart, its first line skipped."""
    found = []
    with open(path, encoding="utf-8") as file:
        file.readline()
        for line in file:
            line = line.strip()
            if name == "cola":
                _, label, _, text = line.split("\t")
                found.append((text, int(label)))
            elif name == "sst2":
                text, label = line.split("\t")
                found.append((text, int(label)))
            elif name == "ag_news":
                label, title, description = line.split('","')
                found.append((f"{title}. {description}".strip('"'), int(label.strip('"')) - 1))
            else:
                found.append((line[:-9].strip('"'), int(line[-8:] == "positive")))
    return found


def repaired(name: str, text: str) -> str:
    """The reference's text without its faults."""
    if name in ("ag_news", "imdb"):
        text = text.replace('""', '"')
    return text.replace("<br />", "\n").strip()


@pytest.mark.parametrize("name", FOLDERS)
def test_real_texts_are_the_references_but_for_its_faults(shared_data, tmp_path, name):
    corpus = Labelled(dataset(name, path=str(shared_data / FOLDERS[name])), tmp_path)
    assert corpus.labels() == NAMES[name]
    assert tuple(len(corpus.examples(split)) for split in ("train", "val")) == SIZES[name]
    file = next(path for path in (shared_data / FOLDERS[name]).iterdir() if "dev" in path.name)
    theirs, ours = reference_texts(name, file), corpus.examples("val")
    if name in ("cola", "ag_news"):
        ours = ours[1:]  # the reference takes the first row for a header
    assert len(theirs) == len(ours)
    ids = {label: i for i, label in enumerate(NAMES[name])}
    unlike = 0
    for (text, label), example in zip(theirs, ours, strict=True):
        assert ids[corpus.name_of(example.value)] == label
        if repaired(name, text) != example.text:  # the reference takes a text's own quote at an end for the field's
            unlike += 1
            assert name in ("ag_news", "imdb")
            assert repaired(name, text).strip('" ') == example.text.strip('" ')
    assert unlike <= 0.05 * len(ours)


@pytest.fixture(scope="module")
def gpt2(shared_data) -> Tokenizer:
    return Tokenizer.load(shared_data / "gpt2-tokenizer")


@pytest.mark.parametrize("name", FOLDERS)
def test_real_rows_are_the_references_but_for_its_faults(shared_data, tmp_path, gpt2, name):
    """Its first 300 rows: the text's ids, filled up with EOS under attention_mask 0."""
    source = next(path for path in (shared_data / FOLDERS[name]).iterdir() if "dev" in path.name)
    file = tmp_path / source.name
    with source.open(encoding="utf-8") as lines:
        file.write_text("".join(islice(lines, 301)), encoding="utf-8")
    config = dataset(name, train_path=str(file), val_path=str(file))
    rows = rows_of(prepared(config, tmp_path, gpt2, seq_len=1024, splits=("val",)).val)
    first = 1 if name in ("cola", "ag_news") else 0
    compared = 0
    for row, (text, label) in enumerate(reference_texts(name, file), first):
        if any(fault in text for fault in ('""', "<br />")) or text != text.strip():
            text = repaired(name, text)
        ids = gpt2.encode(text)
        if len(ids) > 1024:
            continue  # the reference's row is longer than its model
        assert rows["labels"][row] == label
        expected = ids + [gpt2.eos_id] * (1024 - len(ids))
        if rows["input_ids"][row].tolist() == expected:
            assert rows["attention_mask"][row].tolist() == [1] * len(ids) + [0] * (1024 - len(ids))
            compared += 1
    assert compared >= 0.95 * 299
