"""Tables that users bring, against pandas and json: the same texts and labels, or a message with the place."""

import gzip
import io
import json
import math

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.files import read_documents
from gpt2x.data.reading.tables import TABLES
from gpt2x.data.sources.instructions import Instructions
from gpt2x.data.sources.labelled import read_examples
from gpt2x.data.sources.registry import open_corpus
from gpt2x.errors import UserError
from gpt2x.runtime.json_text import well_formed

LABELLED = DatasetConfig(name="labelled_text", corpus="labelled")
# what a message may say instead of a table that pandas reads
REASONS = (
    "fields instead of", "is not CSV", "has an empty 'label'", "has no example", "has no column", "not valid UTF-8",
)  # fmt: skip
TEXT = st.text(st.sampled_from("ab,;\"'\n\r\t |é日\u2028\ufeff\x85😀") | st.characters(exclude_categories=["Cs"],
               exclude_characters="\0"), max_size=9)  # fmt: skip
LABELS = st.sampled_from(["pos", "neg", " 1", "0.5", "True", "nan", "None", "é"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts_of(path) -> list[str]:
    """The documents of dataset=text."""
    return [piece.text for piece in read_documents(path, "text")]


def pairs_of(path) -> list[tuple[str, str]]:
    """Texts and labels of dataset=labelled_text."""
    return [example[:2] for example in read_examples(path, "dataset.path", LABELLED)]


def check(path, table) -> None:
    """Compare what gpt2x reads with the columns of pandas' table."""
    texts = [text for text in table["text"] if text.strip()]
    assert texts_of(path) == texts
    if not any(label.strip() == "" for label in table["label"]):
        assert pairs_of(path) == [
            (text.strip(), label.strip()) for text, label in zip(table["text"], table["label"], strict=True)
        ]


# ---- .csv and .tsv


@given(
    st.lists(st.tuples(TEXT, LABELS), min_size=1, max_size=5),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
)
def test_a_csv_is_what_pandas_reads(folder, rows, encoding, quoting, line_end, is_packed):
    table = pd.DataFrame(rows, columns=["text", "label"]).assign(id=range(len(rows)))
    text = table.to_csv(index=quoting == 2, quoting=quoting, lineterminator=line_end)
    content = text.encode(encoding)
    path = written(folder, "a.csv.gz" if is_packed else "a.csv", gzip.compress(content) if is_packed else content)
    check(path, pd.read_csv(path, dtype=str, keep_default_na=False, encoding=encoding))


# without a single \r: after a blank line that ends in it, pandas 2.3 loses a comma
SIGNS = st.lists(st.sampled_from(["a", "b", ",", '"', " ", "\n", "\r\n", ";", "\t"]), max_size=24).map("".join)


@given(SIGNS, st.sampled_from(["text,label\n", " label ,text\r\n"]))
@example('a,"b\n"c', "text,label\n")
def test_a_csv_of_any_characters_is_what_pandas_reads_or_rejected(folder, body, header):
    path = written(folder, "b.csv", header + body)
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=False, index_col=False)
        table.columns = table.columns.str.strip()
    except (pd.errors.ParserError, pd.errors.ParserWarning, pd.errors.EmptyDataError):
        table = None
    try:
        pairs = pairs_of(path)
    except UserError as error:
        pairs, message = None, str(error)
    if pairs is None:
        assert str(path) in message
        assert any(reason in message for reason in REASONS), message
        return
    assert table is not None
    assert pairs == [(a.strip(), b.strip()) for a, b in zip(table["text"], table["label"], strict=True)]
    assert texts_of(path) == [text for text in table["text"] if text.strip()]


@given(st.lists(st.tuples(st.text(st.sampled_from("ab\"' ,é日"), max_size=8), LABELS), min_size=1, max_size=5))
def test_a_tsv_is_what_pandas_reads_without_quotes_unless_it_wrote_them(folder, rows):
    content = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    path = written(folder, "a.tsv", content)
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    try:
        quoted = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    except pd.errors.ParserError:
        quoted = table
    check(path, quoted if quoted.to_csv(sep="\t", index=False) == content else table)


@given(
    st.lists(st.tuples(TEXT, LABELS), min_size=1, max_size=5),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["\n", "\r\n"]),
)
@example([("", "pos")], 0, "\n")
def test_a_tsv_with_the_quotes_of_a_writer_is_what_pandas_reads(folder, rows, quoting, line_end):
    path = written(
        folder,
        "b.tsv",
        pd.DataFrame(rows, columns=["text", "label"]).to_csv(
            sep="\t", index=False, quoting=quoting, lineterminator=line_end
        ),
    )
    check(path, pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False))


@pytest.mark.parametrize(
    "line",
    [
        '"It works."\tpos',
        '"a ""b"" c\tpos',
        '"\tpos',
        '"" said he\tpos',
        'a\t"b\tpos',
        'She said "hi".\tpos',
    ],
)
def test_quotes_of_texts_stay_in_a_tsv(folder, line):
    header = "text\tlabel" if line.count("\t") == 1 else "other\ttext\tlabel"
    path = written(folder, "c.tsv", f"{header}\n{line}\n{header}\n")
    assert pairs_of(path) == [tuple(line.split("\t")[-2:]), ("text", "label")]


# ---- .jsonl, .json and .parquet

VALUES = st.one_of(
    TEXT, TEXT, st.text(max_size=4), st.none(), st.booleans(), st.integers(), st.floats(), st.just([1, "a"]),
    st.just({"a": 1}),
)  # fmt: skip


def expected(row):
    """(text, label) of a row of JSON by the documented meaning; None if it is rejected."""
    text, label = row["text"], row["label"]
    missing = [value is None or (isinstance(value, float) and math.isnan(value)) for value in (text, label)]
    if missing[1] or isinstance(label, (list, dict)) or (isinstance(label, float) and math.isinf(label)):
        return None
    if not (isinstance(text, str) or missing[0]):
        return None
    if not isinstance(label, str):
        label = str(label) if isinstance(label, bool | int) else pd.Series([label]).to_csv(index=False, header=False)
    return "" if missing[0] else well_formed(text).strip(), well_formed(label).strip()


@given(
    st.lists(st.fixed_dictionaries({"text": VALUES, "label": VALUES}), min_size=1, max_size=4),
    st.sampled_from([".jsonl", ".json", "data"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.booleans(),
)
def test_json_means_the_same_as_a_csv_or_is_rejected(folder, rows, form, encoding, ascii_only):
    rows = rows if ascii_only else well_formed(rows)
    if form == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    else:
        content = json.dumps(rows if form == ".json" else {"data": rows}, ensure_ascii=ascii_only, indent=1)
    path = written(folder, "a" + (form if form != "data" else ".json"), content.encode(encoding))
    pairs = [expected(row) for row in rows]
    if any(pair is None or not pair[1] for pair in pairs):
        with pytest.raises(UserError, match=r"line \d+"):
            pairs_of(path)
    else:
        assert pairs_of(path) == pairs
        assert [text.strip() for text in texts_of(path)] == [text for text, _ in pairs if text]


@pytest.mark.run  # the threads of pyarrow
@given(
    st.lists(st.tuples(TEXT | st.none(), st.integers(-3, 3) | st.none()), min_size=1, max_size=5),
    st.sampled_from(["int", "float", "bool", "str", "category"]),
)
def test_a_parquet_is_what_pandas_writes_to_a_csv(folder, rows, kind):
    labels = [label for _, label in rows]
    values = {"int": [0 if label is None else label for label in labels], "bool": [bool(label) for label in labels],
              "float": [None if label is None else label / 2 for label in labels]}  # fmt: skip
    column = values.get(kind) or ["x" if label is None else f"c{label}" for label in labels]
    table = pd.DataFrame({"text": pd.Series([text for text, _ in rows], dtype=object), "label": column})
    if kind == "category":
        table = table.astype({"label": "category"})
    table.to_parquet(folder / "a.parquet")
    text = table.to_csv(index=False, quoting=1)  # all fields, so that a lone carriage return is read again
    csv = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    if (csv["label"] == "").any():
        with pytest.raises(UserError, match=r"a.parquet, row \d+ has an empty 'label'"):
            pairs_of(folder / "a.parquet")
    else:
        texts = ["" if text is None else text.strip() for text, _ in rows]
        assert pairs_of(folder / "a.parquet") == list(zip(texts, csv["label"], strict=True))


# ---- what is ambiguous


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label,label\nx,1,2\n"),
        ("a.csv", "label,text,label \nx,1,2\n"),
        ("a.csv", "text, text,label\nx,1,2\n"),
        ("a.tsv", "label\ttext\tlabel\n1\tx\t2\n"),
        ("a.jsonl", '{"text": "x", "label": 1, "label": 2}\n'),
        ("a.json", '[{"text": "x", "text": "y", "label": 2}]'),
    ],
)
def test_a_column_that_is_there_twice(tmp_path, name, content):
    path = written(tmp_path, name, content)
    with pytest.raises(UserError, match="twice") as caught:
        read_examples(path, "dataset.path", LABELLED)
    assert str(path) in str(caught.value)


def test_names_of_a_table_without_a_header_that_are_there_twice(tmp_path):
    path = written(tmp_path, "a.csv", "x,1,2\n")
    config = DatasetConfig(name="labelled_text", corpus="labelled", columns=["text", "label", "label"])
    with pytest.raises(UserError, match=r"dataset.columns has 'label' twice \(columns 2 and 3\)"):
        read_examples(path, "dataset.path", config)


def test_a_label_of_thousands_of_digits_is_a_name(tmp_path):
    path = written(tmp_path, "a.csv", f"text,label\nx,{'1' * 5000}\ny,2\n")
    source = open_corpus(DatasetConfig(name="labelled_text", corpus="labelled", train_path=str(path)), tmp_path)
    assert source.labels() == ["1" * 5000, "2"]


def test_columns_that_are_not_read_may_be_there_twice(tmp_path):
    assert pairs_of(written(tmp_path, "a.csv", "id,text,label,id\n1,x,y,2\n")) == [("x", "y")]


def test_a_parquet_with_a_column_twice(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    for read in (texts_of, pairs_of):
        with pytest.raises(UserError, match=r"its schema has 'text' twice \(columns 1 and 2\)"):
            read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '[{"text": "x"}]', "line 1 begins a list.*Rename it to .json"),
        ("a.jsonl", '\n[\n{"text": "x"}\n]', "line 2 begins a list"),
        ("a.json", '{"text": "x"}\n{"text": "y"}\n', "One object per line is .jsonl: rename"),
        ("a.json", '{"text": ["x"]}', "an object with the keys 'text', not a list of objects"),
        ("a.json", '{"rows": 1, "data": [{"text": "x"}]}', "not a list of objects"),
        ("a.csv", "text;label\nx;1\n", "separated by ';'"),
        ("a.jsonl", '{"text": NaN, "label": 1e999}\n', r"'label' is a number \(inf\), not a label"),
        ("a.jsonl", '{"text": "x", "label": ["a", "b"]}\n', r"line 1: 'label' is a list \(\['a', 'b'\]\).*one label"),
        ("a.jsonl", '{"text": "x", "label": {"a": 1}}\n', "line 1: 'label' is an object"),
        ("a.jsonl", '{"text": true, "label": 1}\n', r"line 1: 'text' is true or false \(True\), not text"),
        ("a.jsonl", '{"text": "x", "label": NaN}\n', "line 1 has an empty 'label'"),
        ("a.jsonl", '{"text": "x", "label": null}\n', "line 1 has an empty 'label'"),
        ("a.jsonl", '{"text": "x", "label": ' + "[" * 90_000 + "\n", "line 1 is not JSON: lists or objects"),
        ("a.jsonl", '{"text": "x", "label": ' + "1" * 9000 + "}\n", "line 1 is not JSON: a number has too many digits"),
        ("a.csv.gz", "text,label\nx,1\n", "is damaged, or not compressed by gzip"),
        ("a.parquet", "PAR1 and no more", "is not a Parquet file"),
        ("a.csv", b"PK\x03\x04", "is a zip archive"),
        ("a.csv", b"text,label\nx\0y,1\n", "byte 0x00 at offset 12 \\(line 2\\)"),
    ],
)  # fmt: skip
def test_messages(tmp_path, name, content, message):
    path = written(tmp_path, name, content)
    config = DatasetConfig(name="labelled_text", corpus="labelled")
    with pytest.raises(UserError, match=message) as caught:
        read_examples(path, "dataset.path", config)
    assert str(path) in str(caught.value)


def test_dates_bytes_and_nested_columns_of_a_parquet(tmp_path):
    for values, kind in (
        ([[1]], "a list"),
        ([{"a": 1}], "an object"),
        ([b"x"], "bytes"),
        ([pd.Timestamp(0)], "Timestamp"),
    ):
        pd.DataFrame({"text": ["x"], "label": values}).to_parquet(tmp_path / "a.parquet")
        with pytest.raises(UserError, match=f"a.parquet, row 1: 'label' is {kind}"):
            pairs_of(tmp_path / "a.parquet")


# ---- the other sources read the same tables

ALPACA = [
    {"instruction": "Add", "input": None, "output": "4"},
    {"instruction": "Say \ud83d", "input": "x", "output": "\udc00y"},
    {"instruction": "Sing", "output": "la"},
]


@pytest.mark.parametrize("form", ["jsonl", "json", "data", "csv", "parquet"])
def test_instructions_are_the_same_in_every_table(tmp_path, form):
    frame = pd.DataFrame(well_formed(ALPACA))
    path = tmp_path / f"a.{'json' if form == 'data' else form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ALPACA))
    elif form in ("json", "data"):
        path.write_text(json.dumps(ALPACA if form == "json" else {"data": ALPACA}))
    else:
        frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    config = DatasetConfig(name="instructions", corpus="instructions", train_path=str(path), template="alpaca")
    examples = Instructions(config, tmp_path).examples("train")
    assert [e.response for e in examples] == ["4", "\ufffdy", "la"]
    assert ["Input" in e.prompt for e in examples] == [False, True, False]
    assert "Say \ufffd" in examples[1].prompt


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": None, "output": "x"}, "line 1 has an empty 'instruction'"),
        ({"instruction": "a", "output": None}, "line 1 has an empty 'output'"),
        ({"instruction": "a", "output": 4}, r"line 1: 'output' is a number \(4\), not text"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "line 1: 'input' is a list"),
    ],
)
def test_fields_of_instructions_that_are_no_text(tmp_path, row, message):
    path = written(tmp_path, "a.jsonl", json.dumps(row))
    config = DatasetConfig(name="instructions", corpus="instructions", train_path=str(path))
    with pytest.raises(UserError, match=message):
        Instructions(config, tmp_path)


def test_rows_without_text_are_counted(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": " "}, {"text": float("nan")}, {"text": "two"}]
    path = written(tmp_path, "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = open_corpus(DatasetConfig(name="text", corpus="text", train_path=str(path)), tmp_path)
    for _ in range(2):
        assert [piece.text for piece in source.pieces("train")] == ["one", "two"]
    assert source.reading_notes == ["3 rows of a.jsonl have no text and are left out"]


def test_tables_of_the_list_are_those_that_are_read():
    from gpt2x.compatibility import Use
    from gpt2x.data.reading.files import SUFFIXES
    from gpt2x.data.reading.folders import DATA_FILES

    read = DATA_FILES.names(Use.READ)
    assert set(SUFFIXES) | {f"{suffix}.gz" for suffix in SUFFIXES if suffix != ".parquet"} | {".mindrecord"} == set(
        read
    )
    assert set(TABLES) < set(SUFFIXES)
