"""Texts with one label each, from tables and JSON lines."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, document
from gpt2x.data.reading.files import MAX_CSV_FIELD_CHARS, list_names, not_utf8, read_objects, require_file
from gpt2x.data.sources._examples import Examples
from gpt2x.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")


class Example(NamedTuple):
    """A text, the value of its label, and the file and line that it is from."""

    text: str
    value: str
    location: str


class Labelled(Examples[Example]):
    """Labelled texts; as plain text a document is one of them."""

    suffixes = SUFFIXES
    row_form = "labelled"

    def read(self, path: Path, key: str) -> list[Example]:
        """Return the examples of one file, as `read_examples` does."""
        return read_examples(path, key, self.config)

    def content_hash(self, split: str) -> str:
        """Return the sha256 of texts and labels, in order."""
        return hashlib.sha256(json.dumps([e[:2] for e in self.examples(split)]).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the texts."""
        return chain.from_iterable(document(example.text) for example in self.examples(split))

    def labels(self) -> list[str]:
        """Return the names of the classes in the order of their ids.

        They are the training part's values, sorted; if all are numbers, they are sorted as numbers.

        Raises:
            UserError: Fewer than two classes, or two values with one name.
        """
        values = {example.value for example in self.examples("train" if self.has("train") else "val")}
        numeric = all(value.removeprefix("-").isdecimal() for value in values)
        ordered = sorted(values, key=int if numeric else str)
        names = [self.name_of(value) for value in ordered]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(
                f"dataset.label_column={self.config.label_column} of dataset={self.config.name} gives the classes "
                f"{list_names(names)}. At least two with different names are needed. Name another column."
            )
        return names

    def name_of(self, value: str) -> str:
        """Return the name of the class that has `value` in the files."""
        return (self.config.label_names or {}).get(value, value)


def read_examples(path: Path, key: str, config: DatasetConfig) -> list[Example]:
    """Return the examples of one file, with whitespace around each text removed.

    A .csv is parsed with quotes, a .tsv without (GLUE's have unpaired ones). The first line is a header if it has the
    names of all columns that the configuration names; `dataset.columns` names those of a table without a header.

    Raises:
        UserError: A faulty row, with file and line.
    """
    require_file(path, key)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{key}={path}: labelled texts are read from {', '.join(SUFFIXES)}. Convert the file.")
    rows = read_objects(path) if path.suffix.lower() == ".jsonl" else read_table(path, config)
    columns = text_columns(config)
    examples = []
    for location, row in rows:
        for name in (*columns, config.label_column):
            if row.get(name) is None:
                raise UserError(
                    f"{location} has no {name!r}; it has {list_names(row)}. Set dataset.text_column and "
                    "dataset.label_column to the columns of text and label."
                )
        text = ". ".join(str(row[name]) for name in columns)
        if config.line_break:
            text = text.replace(config.line_break, "\n")
        value = str(row[config.label_column]).strip()
        if not value:
            raise UserError(f"{location} has an empty {config.label_column!r}. Label the text, or remove the row.")
        examples.append(Example(text.strip(), value, location))
    if not examples:
        raise UserError(f"{key}={path} has no example. Give a file with texts in it.")
    return examples


def text_columns(config: DatasetConfig) -> list[str]:
    """Return the names of the columns that make a text."""
    return config.text_columns or [config.text_column]


def read_table(path: Path, config: DatasetConfig) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield (location, row) of a .csv or .tsv."""
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    needed = [*text_columns(config), config.label_column]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows = csv.reader(file, strict=True)
            else:
                rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            first = next(rows, [])
            names = [name.strip() for name in first]
            content: Iterator[list[str]] = rows
            if not set(needed) <= set(names):
                if config.columns is None or len(first) != len(config.columns):
                    raise UserError(
                        f"{path}: its first line, {list_names(names)}, lacks some of the columns {list_names(needed)}. "
                        "Set dataset.text_column and dataset.label_column, or dataset.columns if there is no header."
                    )
                names, content = config.columns, chain([first], rows)
            for row in content:
                if not row:
                    continue
                if len(row) != len(names):
                    raise UserError(
                        f"{path}, line {rows.line_num} has {len(row)} fields instead of {len(names)}. Quote fields "
                        "that contain commas, or correct the line."
                    )
                yield f"{path}, line {rows.line_num}", dict(zip(names, row, strict=True))
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is not CSV: {error}. Correct the line.") from error


SOURCE = Labelled
