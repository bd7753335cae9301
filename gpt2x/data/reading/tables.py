"""Rows of the user's tables: .csv, .tsv, .jsonl, .json and .parquet give the same rows, or a message with the place."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from gpt2x.data.reading.encodings import open_text
from gpt2x.errors import UserError
from gpt2x.runtime import limits
from gpt2x.runtime.json_text import parse_json

MAX_CSV_FIELD_CHARS = 1 << 30  # the csv module's default, 128 kB, is less than an article
DATA_LIST = re.compile(r'\s*(?:\{\s*"data"\s*:\s*)?\[')  # what a .json begins with that is a list of rows
BEGINS_ROWS = re.compile(DATA_LIST.pattern + r"\s*\{")
BEGINS_LIST = re.compile(r"\s*\[\s*(\{|$)")
PEEK_CHARS = 4096
CORRECT_LINE = "Correct or remove the line."
FIELD = r'(?:"[^"]*"(?:"[^"]*")*|[^"\t\r\n]*)'  # of a .tsv, quoted or not
FIELDS = re.compile(rf"(?:^|\t)({FIELD})")
OPEN_RECORD = re.compile(rf'(?:{FIELD}\t)*"[^"]*(?:""[^"]*)*')  # its last field has no end yet


class Row(NamedTuple):
    """A row of a table, and the file and line (of a .parquet, the row) that it is from."""

    location: str
    values: Mapping[str, object]


class Columns(NamedTuple):
    """What a source reads of a table.

    Attributes:
        required: names of columns that each row must have.
        optional: names of columns that it may have.
        hint: how to name other columns; ends messages.
        without_header: names of all columns of a .csv or .tsv whose first line is no header.
    """

    required: Sequence[str]
    hint: str
    optional: Sequence[str] = ()
    without_header: Sequence[str] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names that are read."""
        return (*self.required, *self.optional)


def read_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a table.

    Raises:
        UserError: a file that is not what its name says, a column that is missing or there twice, or a faulty row.
    """
    return TABLES[kind_of(path)](path, columns)


def kind_of(path: Path) -> str:
    """Return the suffix that says how a file is read: the one before `.gz` if the file is compressed."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def list_names(names: Iterable[str]) -> str:
    """Return names, quoted, as a list for people; "none" if there are none."""
    return ", ".join(map(repr, names)) or "none"


def is_json_table(path: Path) -> bool:
    """Return whether a .json begins as a list of objects does, or as {"data": [{…}]}."""
    try:
        with open_text(path) as file:
            return BEGINS_ROWS.match(file.read(PEEK_CHARS)) is not None
    except UserError:  # no text at all
        return False


# ---- .csv and .tsv


def _read_delimited(path: Path, columns: Columns, **dialect: Any) -> Iterator[Row]:
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    with open_text(path, newline="") as file:
        rows = csv.reader(file, **dialect)
        try:
            first = next((row for row in rows if not _is_blank(row)), [])
            header = _header(path, first, columns)
            names = list(columns.without_header or ()) if header is None else header
            reject_twice(names, columns, "dataset.columns" if header is None else f"{path}: its header line")
            for row in chain([first] if header is None else [], rows):
                if _is_blank(row) and len(row) != len(names):
                    continue
                if len(row) != len(names):
                    raise UserError(
                        f"{path}, line {rows.line_num} has {len(row)} fields instead of {len(names)}. Quote fields "
                        "that contain the separator, or correct the line."
                    )
                yield Row(f"{path}, line {rows.line_num}", dict(zip(names, row, strict=True)))
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num} is not CSV: {error}. Correct the line.") from error


def _header(path: Path, first: Sequence[str], columns: Columns) -> list[str] | None:
    """The names in the first line, without blanks around them; None if it is a row of a table without a header."""
    names = [name.strip() for name in first]
    if missing := [name for name in columns.required if name not in names]:
        if columns.without_header is not None and len(first) == len(columns.without_header):
            return None
        separators = [sign for sign in (";", "\t", ",", "|") if len(names) == 1 and sign in names[0]]
        hint = f"Its fields seem to be separated by {separators[0]!r}: write it again." if separators else columns.hint
        raise UserError(f"{path} has no column {list_names(missing)}; its header line has {list_names(names)}. {hint}")
    return names


def reject_twice(names: Sequence[str], columns: Columns, location: str) -> None:
    """Reject a header that has a column twice which is read: one of them would be chosen without a word.

    Raises:
        UserError: names the column and its places.
    """
    for name in columns.names:
        if len(places := [str(place) for place, other in enumerate(names, 1) if other == name]) > 1:
            raise UserError(
                f"{location} has {name!r} {'twice' if len(places) == 2 else f'{len(places)} times'} (columns "
                f"{' and '.join(places)}). Rename or remove all but one."
            )


def _is_blank(row: Sequence[str]) -> bool:
    return not row or (len(row) == 1 and not row[0].strip())


def _read_csv(path: Path, columns: Columns) -> Iterator[Row]:
    return _read_delimited(path, columns, strict=True)


def _read_tsv(path: Path, columns: Columns) -> Iterator[Row]:
    dialect = {"strict": True} if _is_quoted(path) else {"quoting": csv.QUOTE_NONE}
    return _read_delimited(path, columns, delimiter="\t", **dialect)


def _is_quoted(path: Path) -> bool:
    """Whether the quotes of a .tsv are a CSV writer's, as pandas', and not part of the texts, as in GLUE.

    A writer quotes all fields of the header, or only fields with a tab, a line end or a quote, which it doubles. So
    it leaves no quote in other fields, and each row has as many fields as the header.
    """
    record, num_fields, quotes_all, has_quotes = "", None, False, False
    with open_text(path, newline="") as file:
        for line in file:
            record += line
            if record is not line and '"' not in line:
                continue  # within a field
            if OPEN_RECORD.fullmatch(record):
                continue
            content = record.rstrip("\r\n")
            fields = FIELDS.findall(content)
            quoted = [field for field in fields if field.startswith('"')]
            if num_fields is None:
                num_fields, quotes_all = len(fields), len(quoted) == len(fields)
            may_be = quotes_all or content == '""' or all(re.search(r'[\t\r\n"]', field[1:-1]) for field in quoted)
            if '"' in content and not (may_be and "\t".join(fields) == content and len(fields) == num_fields):
                return False
            record, has_quotes = "", has_quotes or bool(quoted)
    return has_quotes and not record


# ---- .jsonl and .json


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Row]:
    with open_text(path) as file:
        is_first = True
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            location = f"{path}, line {number}"
            if is_first and BEGINS_LIST.match(line):
                raise UserError(f"{location} begins a list, but a .jsonl has one object per line. Rename it to .json.")
            is_first = False
            row = parse_json(line, location, CORRECT_LINE, unique_keys=True)
            if not isinstance(row, dict):
                raise UserError(f"{location} is not a JSON object such as {{{columns.names[0]!r}: ...}}. Correct it.")
            yield _json_row(row, location, columns)


def _read_json(path: Path, columns: Columns) -> Iterator[Row]:
    """Of each element of the list the location is the line where it begins."""
    with open_text(path) as file:
        text = file.read()
    try:
        memory = max(limits.MEMORY_BYTES, limits.JSON_TABLE_RATIO * len(text))
        content = parse_json(text, str(path), "Correct it.", unique_keys=True, memory=memory)
    except UserError as error:
        if "Extra data" in str(error):
            raise UserError(f"{error} One object per line is .jsonl: rename the file.") from error
        raise
    begin = DATA_LIST.match(text)
    if begin is None:
        has = f"an object with the keys {list_names(content)}" if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path} is {has}, not a list of objects, as [{{{columns.names[0]!r}: …}}, …] or {{'data': [{{…}}, …]}}. "
            "Write such a list."
        )
    rows = content["data"] if isinstance(content, dict) else content
    decode, at, line, counted = json.JSONDecoder().raw_decode, begin.end() - 1, 1, 0
    for row in rows:
        while text[at] in "[, \t\r\n":  # safe: the whole text is JSON
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {line} begins {type(row).__name__}, not a JSON object. Correct the file.")
        yield _json_row(row, f"{path}, line {line}", columns)
        _, at = decode(text, at)


def _json_row(row: Mapping[str, object], location: str, columns: Columns) -> Row:
    if missing := [name for name in columns.required if name not in row]:
        raise UserError(f"{location} has no {list_names(missing)}; it has {list_names(row)}. {columns.hint}")
    return Row(location, row)


# ---- .parquet


def _read_parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in columns.required if name not in names]:
                raise UserError(
                    f"{path} has no column {list_names(missing)}; it has {list_names(names)}. {columns.hint}"
                )
            reject_twice(names, columns, f"{path}: its schema")
            chosen = [name for name in columns.names if name in names]
            for batch in file.iter_batches(batch_size=256, columns=chosen):
                for values in zip(*(batch.column(name).to_pylist() for name in chosen), strict=True):
                    number += 1
                    yield Row(f"{path}, row {number}", dict(zip(chosen, values, strict=True)))
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a Parquet file: {error}. Copy or write it again.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, after row {number}: a text is not valid UTF-8 ({error}). Write it again.") from error


TABLES: dict[str, Callable[[Path, Columns], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
