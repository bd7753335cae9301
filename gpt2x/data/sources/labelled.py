"""Texts with a label each, from tables and JSON lines (imports no mindspore)."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import DatasetConfig
from gpt2x.data.sources.documents import Piece, document
from gpt2x.data.sources.examples import Examples
from gpt2x.data.sources.files import MAX_CSV_FIELD_CHARS, list_names, not_utf8, read_objects, require_file
from gpt2x.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")


class Example(NamedTuple):
    """A text, the value of its label, and where it stands."""

    text: str
    value: str
    location: str


class Labelled(Examples[Example]):
    """The corpus reader of labelled texts; as plain text a document is one of them."""

    suffixes = SUFFIXES

    def read(self, path: Path, key: str) -> list[Example]:
        """As `read_examples`."""
        return read_examples(path, key, self._config)

    def content_hash(self, split: str) -> str:
        """sha256 of texts and labels, in order."""
        return hashlib.sha256(json.dumps([e[:2] for e in self.examples(split)]).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """The texts."""
        return chain.from_iterable(document(example.text) for example in self.examples(split))

    def labels(self) -> list[str]:
        """Names of the classes in the order of their ids: the training part's values, sorted, numbers as numbers.

        Raises:
            UserError: fewer than two, or two values of one name.
        """
        values = {example.value for example in self.examples("train" if self.has("train") else "val")}
        numeric = all(value.removeprefix("-").isdecimal() for value in values)
        ordered = sorted(values, key=int if numeric else str)
        names = [self.name_of(value) for value in ordered]
        if len(names) < 2 or len(set(names)) < len(names):
            raise UserError(
                f"dataset.label_column={self._config.label_column} of dataset={self._config.name} gives the classes "
                f"{list_names(names)}: two at least, each with a name of its own, are needed; name another column"
            )
        return names

    def name_of(self, value: str) -> str:
        """A class' name by its value in the files."""
        return (self._config.label_names or {}).get(value, value)


def read_examples(path: Path, key: str, config: DatasetConfig) -> list[Example]:
    """The examples of one file; a text is stripped of blanks around it.

    A .csv is parsed with quotes, a .tsv without (GLUE's have unpaired ones). The first line is a header where it holds
    the names of all columns asked for; `dataset.columns` names those of a table that has none.

    Raises:
        UserError: with file and line.
    """
    require_file(path, key)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{key}={path}: labelled texts are read from {', '.join(SUFFIXES)}; convert the file.")
    rows = read_objects(path) if path.suffix.lower() == ".jsonl" else read_table(path, config)
    columns = text_columns(config)
    examples = []
    for location, row in rows:
        for name in (*columns, config.label_column):
            if row.get(name) is None:
                raise UserError(
                    f"{location} has no {name!r}; it has {list_names(row)}. Set dataset.text_column and "
                    "dataset.label_column to those that hold text and label."
                )
        text = ". ".join(str(row[name]) for name in columns)
        if config.line_break:
            text = text.replace(config.line_break, "\n")
        value = str(row[config.label_column]).strip()
        if not value:
            raise UserError(f"{location} has an empty {config.label_column!r}. Label the text, or remove the row.")
        examples.append(Example(text.strip(), value, location))
    if not examples:
        raise UserError(f"{key}={path} holds no example. Give a file with texts in it.")
    return examples


def text_columns(config: DatasetConfig) -> list[str]:
    """The columns that make a text."""
    return config.text_columns or [config.text_column]


def read_table(path: Path, config: DatasetConfig) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(place, row) of a .csv or .tsv."""
    csv.field_size_limit(MAX_CSV_FIELD_CHARS)
    wanted = [*text_columns(config), config.label_column]
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                rows = csv.reader(file, strict=True)
            else:
                rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            first = next(rows, [])
            names = [name.strip() for name in first]
            content: Iterator[list[str]] = rows
            if not set(wanted) <= set(names):
                if config.columns is None or len(first) != len(config.columns):
                    raise UserError(
                        f"{path}: its first line, {list_names(names)}, names no columns {list_names(wanted)}. Set "
                        "dataset.text_column and dataset.label_column, or dataset.columns where there is no header."
                    )
                names, content = config.columns, chain([first], rows)
            for row in content:
                if not row:
                    continue
                if len(row) != len(names):
                    raise UserError(
                        f"{path}, line {rows.line_num} has {len(row)} fields instead of {len(names)}. Quote fields "
                        "that hold commas, or correct the line."
                    )
                yield f"{path}, line {rows.line_num}", dict(zip(names, row, strict=True))
    except UnicodeDecodeError as error:
        raise not_utf8(path) from error
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num} is not CSV: {error}. Correct the line.") from error
