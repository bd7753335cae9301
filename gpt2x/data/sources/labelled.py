"""Texts with one label each, from tables and JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, document
from gpt2x.data.reading.folders import require_kind
from gpt2x.data.reading.tables import TABLES, Columns, list_names, read_rows
from gpt2x.data.reading.values import label_of, text_of
from gpt2x.data.sources._examples import Examples
from gpt2x.errors import UserError

MAX_DIGITS = 1000  # Python reads no number of more than 4,300


class Example(NamedTuple):
    """A text, the value of its label, and the file and line that it is from."""

    text: str
    value: str
    location: str


class Labelled(Examples[Example]):
    """Labelled texts; as plain text a document is one of them."""

    suffixes = tuple(TABLES)
    row_form = "labelled"

    def read(self, path: Path, key: str) -> list[Example]:
        """Return the examples of one file, as `read_examples` does; a note counts texts that are empty."""
        examples = read_examples(path, key, self.config)
        if num_empty := sum(not example.text for example in examples):
            self.notes.append(f"{num_empty:,} texts of {path.name} are empty: each is one end-of-text token")
        return examples

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
        numeric = all(len(value) < MAX_DIGITS and value.removeprefix("-").isdecimal() for value in values)
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

    The first line of a .csv or .tsv is a header if it has the names of all columns that the configuration names;
    `dataset.columns` names those of a table without a header.

    Raises:
        UserError: A faulty row, with file and line.
    """
    require_kind(path, key, tuple(TABLES), "labelled texts")
    texts = config.text_columns or [config.text_column]
    hint = "Set dataset.text_column and dataset.label_column, or dataset.columns if there is no header."
    examples = []
    for location, row in read_rows(path, Columns([*texts, config.label_column], hint, without_header=config.columns)):
        text = ". ".join(text_of(row[name], name, location) for name in texts)
        if config.line_break:
            text = text.replace(config.line_break, "\n")
        examples.append(
            Example(text.strip(), label_of(row[config.label_column], config.label_column, location), location)
        )
    if not examples:
        raise UserError(f"{key}={path} has no example. Give a file with texts in it.")
    return examples


SOURCE = Labelled
