import csv
import json

import pytest

from gpt2x.config import DatasetConfig
from gpt2x.data.sources.registry import open_corpus
from gpt2x.errors import UserError

TEXTS = ["One, with a comma", 'Two "quoted"\nand a second line', "Drei: ü 日本"]


def corpus(tmp_path, **keys):
    return open_corpus(DatasetConfig(name="text", corpus="text", **keys), tmp_path)


def read(tmp_path, path, **keys):
    texts, part = [], ""
    for piece in corpus(tmp_path, train_path=str(path), **keys).pieces("train"):
        part += piece.text
        if piece.ends_document:
            texts.append(part)
            part = ""
    assert not part
    return texts


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_format_gives_the_documents(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    write(tmp_path / "a.jsonl", "\n\n".join(json.dumps({"text": t, "n": 1}) for t in TEXTS))
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(TEXTS)])
    pq.write_table(pa.table({"text": [*TEXTS, None], "id": [1, 2, 3, 4]}), tmp_path / "a.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        assert read(tmp_path, tmp_path / f"a.{suffix}") == TEXTS
    write(tmp_path / "a.txt", "\ufeffwhole\r\nfile")
    assert read(tmp_path, tmp_path / "a.txt") == ["whole\nfile"]


def test_folder_in_order_of_names(tmp_path):
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.txt", "a.md", "sub/c.txt", "ignored.bin", "empty.txt"):
        write(folder / name, "" if name == "empty.txt" else name)
    assert read(tmp_path, folder) == ["a.md", "b.txt", "sub/c.txt"]


def test_the_real_csv(shared_data, tmp_path):
    texts = read(tmp_path, shared_data / "imdb" / "dev_sample.csv", text_column="review")
    assert len(texts) == 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"dataset.train_path=.*a.txt is empty"),
        ("a.txt", b"fine\nbad \xff here", r"a.txt is not valid UTF-8: byte 0xff at offset 9 \(line 2\).*iconv"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": \xff}\n',
            r"a.jsonl is not valid UTF-8: byte 0xff at offset 23 \(line 2\)",
        ),
        ("a.csv", b"text\nx\n\xe9\n", r"a.csv is not valid UTF-8: byte 0xe9 at offset 7 \(line 3\)"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"a.jsonl, line 2 is not a JSON object"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 has no 'text'; it has 'body'. Set dataset.text_column"),
        ("a.jsonl", b'{"text": 3}\n', r"line 1: 'text' is a number \(3\), not text"),
        ("a.csv", b"body,label\nx,1\n", r"a.csv has no column 'text'; its header line has 'body', 'label'"),
        ("a.csv", b"text,label\nx,1\nx,y,1\n", r"a.csv, line 3 has 3 fields instead of 2"),
        ("a.csv", b'text\n"open\n', r"a.csv, line 2 is not CSV"),
        ("a.parquet", b"no parquet", r"a.parquet is not a Parquet file"),
        (
            "a.pdf",
            b"x",
            r"dataset.train_path=.*texts are read from .txt, .*ending in '.pdf'; save its text as .txt",
        ),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message):
        read(tmp_path, path)


def test_wrong_places(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pytest.raises(UserError, match=r"dataset.path=.*none.txt does not exist"):
        corpus(tmp_path, path=str(tmp_path / "none.txt"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder has no file with text"):
        corpus(tmp_path, path=str(tmp_path / "folder"))
    with pytest.raises(UserError, match=r"dataset.path=null.*dataset.path=FILE_OR_FOLDER"):
        corpus(tmp_path)
    with pytest.raises(UserError, match="both set"):
        corpus(tmp_path, path="a", train_path="b")
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"has no column 'text'; it has 'body', 'n'"):
        read(tmp_path, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"row 1: 'n' is a number \(1\), not text"):
        read(tmp_path, tmp_path / "a.parquet", text_column="n")
    with pytest.raises(
        UserError, match=r"dataset.protocol=reference is not defined for dataset.corpus=text. Choose one of: clean"
    ):
        corpus(tmp_path, protocol="reference", path="x")
    with pytest.raises(UserError, match=r"dataset.corpus=books does not exist"):
        open_corpus(DatasetConfig(name="x", corpus="books"), tmp_path)


def test_pydocs_topics(tmp_path):
    from pydoc_data.topics import topics

    reader = open_corpus(DatasetConfig(name="pydocs", corpus="pydocs"), tmp_path)
    parts = [[piece.text for piece in reader.pieces(split)] for split in ("train", "val")]
    assert [len(part) for part in parts] == [len(topics) - 8, 8]
    assert sorted(parts[0] + parts[1]) == sorted(topics.values())
