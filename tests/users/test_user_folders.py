"""Folders that users bring: what is read and what is not is said; no README or editor's copy is learnt."""

import json

import pytest

from gpt2x.compatibility import Use
from gpt2x.config import DatasetConfig
from gpt2x.data.reading.folders import DATA_FILES
from gpt2x.data.sources.registry import open_corpus
from gpt2x.errors import UserError

TEXT = "The ferry left the harbour.\n"


def folder_of(tmp_path, *names):
    folder = tmp_path / "corpus"
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"text": f"row of {name}", "label": "a"}] * 2
        content = {"jsonl": "\n".join(map(json.dumps, rows)), "json": json.dumps(rows), "csv": "text,label\nx,1\ny,2\n"}
        path.write_text(content.get(name.rpartition(".")[2], f"text of {name}\n"))
    return folder


def read(folder, tmp_path, corpus="text"):
    source = open_corpus(DatasetConfig(name=corpus, corpus=corpus, train_path=str(folder)), tmp_path)
    texts, text = [], ""
    for piece in source.pieces("train"):
        text += piece.text
        if piece.ends_document:
            texts, text = [*texts, text.strip()], ""
    return texts, source.notes


def test_the_card_is_not_learnt_and_the_data_is(tmp_path):
    folder = folder_of(tmp_path, "README.md", "data.json", "LICENSE.txt")
    texts, notes = read(folder, tmp_path)
    assert texts == ["row of data.json"] * 2
    assert notes == [
        f"{folder}: 1 read (data.json); 2 not read: LICENSE.txt (about the data), README.md (about the data)"
    ]


def test_what_may_be_data_is_named_first(tmp_path):
    pictures = [f"{i}.png" for i in range(9)]
    folder = folder_of(tmp_path, "a.txt", *pictures, "b.parquet.zst", "c.arrow", "d.xlsx", "sub/e.txt", ".git/f.txt")
    texts, (note,) = read(folder, tmp_path)
    assert texts == ["text of a.txt", "text of sub/e.txt"]
    assert f"{folder}: 2 read (a.txt, sub/e.txt); 13 not read: b.parquet.zst, c.arrow, d.xlsx, .git, 0.png" in note
    assert note.endswith(", and 5 more")


@pytest.mark.parametrize(
    "name",
    ["a.txt~", "#a.txt#", ".a.txt.swp", "Copy of a.txt", "a copy.txt", "a - Copy (2).txt", "a (1).txt", "a.bak.txt",
     ".ipynb_checkpoints/a-checkpoint.txt", "__pycache__/a.txt", ".git/description.txt", "a_backup.txt"],
)  # fmt: skip
def test_copies_of_editors_are_not_learnt(tmp_path, name):
    texts, (note,) = read(folder_of(tmp_path, "a.txt", name), tmp_path)
    assert texts == ["text of a.txt"]
    assert name.split("/")[0] in note


def test_a_copy_without_its_original_is_the_text(tmp_path):
    assert read(folder_of(tmp_path, "Copy of a.txt", "b (1).txt"), tmp_path)[0] == [
        "text of Copy of a.txt", "text of b (1).txt",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["README.md", "readme.txt", "LICENSE.md", "dataset_card.md", "CITATION.txt"])
def test_a_folder_with_nothing_but_a_card_is_rejected(tmp_path, name):
    folder = folder_of(tmp_path, name, "data.arrow")
    with pytest.raises(UserError, match=r"has no file with text .*; it has data.arrow, ") as caught:
        read(folder, tmp_path)
    assert f"{name} (about the data)" in str(caught.value)
    assert read(folder / name, tmp_path)[0] == [f"text of {name}"]  # named by the user, it is read


def test_a_json_that_is_no_list_of_rows_is_not_read_in_a_folder(tmp_path):
    folder = folder_of(tmp_path, "a.txt")
    (folder / "config.json").write_text('{"n_layer": 2}')
    (folder / "ids.json").write_text("[1, 2]")
    (folder / "latin.json").write_bytes(b'[{"text": "caf\xe9"}]')
    (folder / "rows.json").write_text('\ufeff {"data" : [ {"text": "row"}]}')
    texts, (note,) = read(folder, tmp_path)
    assert texts == ["text of a.txt", "row"]
    assert "config.json (no list of rows), ids.json (no list of rows), latin.json (no list of rows)" in note


@pytest.mark.parametrize("suffix", DATA_FILES.names(Use.REJECTED))
def test_a_file_of_another_kind_is_rejected_with_advice(tmp_path, suffix):
    folder = folder_of(tmp_path, f"data{suffix}")
    note = next(entry.note for entry in DATA_FILES.entries if entry.name == suffix)
    for corpus in ("text", "labelled", "instructions"):
        with pytest.raises(UserError, match=f"not from files ending in '{suffix}'; {note}"):
            open_corpus(DatasetConfig(name=corpus, corpus=corpus, train_path=f"{folder}/data{suffix}"), tmp_path)


@pytest.mark.parametrize("corpus", ["labelled", "instructions"])
def test_folders_of_examples_say_what_they_do_not_read(tmp_path, corpus):
    folder = folder_of(tmp_path, "train.jsonl", "dev.jsonl", "test.jsonl", "README.md", "more.arrow")
    for name in ("train", "dev", "test"):
        row = {"text": name, "label": "a", "instruction": "Say", "output": name}
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"label": "b"}))
    source = open_corpus(DatasetConfig(name=corpus, corpus=corpus, path=str(folder)), tmp_path)
    assert source.notes[0] == (
        f"{folder}: 2 read (train.jsonl, dev.jsonl); 3 not read: test.jsonl, more.arrow, README.md (about the data)"
    )
    assert all("dev" in str(e) for e in source.examples("val"))
