"""Texts with a label each, from tables and JSON lines (imports no mindspore)."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.data.documents import Piece, document
from gpt2x.data.download import fetch_archive
from gpt2x.data.files import MAX_CSV_FIELD_CHARS, list_names, not_utf8, read_lines, require_file
from gpt2x.errors import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl")
VAL_NAMES = ("dev", "val", "valid", "validation", "test")  # in place of `train` in a file's name, the first found


class Example(NamedTuple):
    """A text, the value of its label, and where it stands."""

    text: str
    value: str
    place: str


class Labelled:
    """The corpus reader of labelled texts; as plain text a document is one of them.

    `dataset.path` is a file, divided by the seed, or a folder with a file whose name holds `train` and one with `dev`,
    `val` or `test` in its place; `train_path` and `val_path` name them instead. All examples are held in memory.

    Raises:
        UserError: no such files, a row without a text or a label, malformed CSV or JSON; with file and line.
    """

    separate = True

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        self._config = config
        self.notes: list[str] = []
        given = {"train": config.train_path, "val": config.val_path}
        files = {split: Path(path).expanduser() for split, path in given.items() if path is not None}
        keys = {split: f"dataset.{split}_path" for split in files}
        if config.path is not None or not files:
            place, key = self._place(cache)
            found = find_splits(place, key) if place.is_dir() else {"train": place}
            files, keys = found | files, dict.fromkeys(found, key) | keys
        self._examples = {split: read_examples(file, keys[split], config) for split, file in files.items()}
        if "val" not in files and files.get("train") and config.path is not None:
            self._divide(config.path)

    def _place(self, cache: Path) -> tuple[Path, str]:
        """The file or folder, and the key that it comes from."""
        config = self._config
        if config.path is not None:
            return Path(config.path).expanduser(), "dataset.path"
        if config.url is None or config.sha256 is None:
            origin = f" (published at {config.url}; with its dataset.sha256=… it is downloaded)" if config.url else ""
            raise UserError(
                f"dataset.path is null: give dataset={config.name} a local dataset.path=FILE_OR_FOLDER "
                f"({', '.join(SUFFIXES)}), or dataset.train_path and dataset.val_path{origin}"
            )
        folder, _ = fetch_archive(config.url, config.sha256, cache)
        return folder / config.archive_folder, "dataset.url"

    def _divide(self, path: str) -> None:
        """Draw round(val_fraction * examples) for validation, a function of the seed and of their number."""
        config, examples = self._config, self._examples["train"]
        if not 0 < config.val_fraction < 1:
            raise UserError(f"dataset.val_fraction={config.val_fraction} must lie between 0 and 1, such as 0.1.")
        count = round(config.val_fraction * len(examples))
        if not 0 < count < len(examples):
            raise UserError(
                f"dataset.path={path} has {len(examples)} examples, too few to draw dataset.val_fraction="
                f"{config.val_fraction} of them; give more, or dataset.train_path and dataset.val_path"
            )
        random = np.random.Generator(np.random.Philox(config.split_seed))
        drawn = set(random.permutation(len(examples))[:count].tolist())
        self._examples = {
            "train": [example for i, example in enumerate(examples) if i not in drawn],
            "val": [example for i, example in enumerate(examples) if i in drawn],
        }
        self.notes.append(f"{count} of {len(examples)} examples drawn for validation (seed {config.split_seed})")

    def has(self, split: str) -> bool:
        """There are examples for `split`."""
        return split in self._examples

    def content_hash(self, split: str) -> str:
        """sha256 of texts and labels, in order."""
        return hashlib.sha256(json.dumps([e[:2] for e in self._examples[split]]).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """The texts."""
        return chain.from_iterable(document(example.text) for example in self._examples[split])

    def num_words(self, split: str) -> None:
        """Not defined."""

    def examples(self, split: str) -> list[Example]:
        """Texts and labels."""
        return self._examples[split]

    def labels(self) -> list[str]:
        """Names of the classes in the order of their ids: the training part's values, sorted, numbers as numbers.

        Raises:
            UserError: fewer than two, or two values of one name.
        """
        values = {example.value for example in self._examples.get("train") or self._examples["val"]}
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


def find_splits(folder: Path, key: str) -> dict[str, Path]:
    """The files of a folder: the training file and the one named like it, or a single file for both.

    Raises:
        UserError: none, or several that may be meant.
    """
    files = {path.name: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()}
    training = [name for name in files if "train" in name]
    if len(training) == 1:
        pair = next((other for word in VAL_NAMES if (other := training[0].replace("train", word)) in files), None)
        return {"train": files[training[0]]} | ({"val": files[pair]} if pair else {})
    if len(files) == 1:
        return {"train": next(iter(files.values()))}
    raise UserError(
        f"{key}={folder} has no single file of {', '.join(SUFFIXES)} whose name holds `train` (found: "
        f"{list_names(files)}); give dataset.train_path and dataset.val_path"
    )


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
    for place, row in rows:
        for name in (*columns, config.label_column):
            if row.get(name) is None:
                raise UserError(
                    f"{place} has no {name!r}; it has {list_names(row)}. Set dataset.text_column and "
                    "dataset.label_column to those that hold text and label."
                )
        text = ". ".join(str(row[name]) for name in columns)
        if config.line_break:
            text = text.replace(config.line_break, "\n")
        value = str(row[config.label_column]).strip()
        if not value:
            raise UserError(f"{place} has an empty {config.label_column!r}. Label the text, or remove the row.")
        examples.append(Example(text.strip(), value, place))
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


def read_objects(path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """(place, object) of each line of a .jsonl."""
    for number, line in enumerate(read_lines(path), 1):
        if line.isspace():
            continue
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{place} is not JSON: {error}. Correct or remove the line.") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} is not a JSON object with text and label. Correct the line.")
        yield place, row
