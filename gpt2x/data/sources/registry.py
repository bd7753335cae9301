"""Corpus readers: where documents come from (imports no mindspore).

A reader streams the pieces of a split's documents; it knows nothing of tokens. Adding one is a class with the
methods of `Corpus`, an entry in `CORPORA` and a YAML file in conf/dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

from gpt2x.config import DatasetConfig
from gpt2x.data.sources.documents import Piece, SeededSplit, document
from gpt2x.data.sources.files import hash_files, read_documents, text_files
from gpt2x.data.sources.instructions import Instructions
from gpt2x.data.sources.labelled import Labelled
from gpt2x.data.sources.wikitext2 import Wikitext2
from gpt2x.errors import UserError


class Corpus(Protocol):
    """What preparation asks of a corpus."""

    separate: bool  # EOS behind each document, and no token lost; otherwise the text as one stream, its tail dropped
    notes: list[str]  # what a user should be told

    def has(self, split: str) -> bool:
        """There is text for `split` (train | val)."""

    def content_hash(self, split: str) -> str:
        """sha256 of all that the text of `split` is made from."""

    def pieces(self, split: str) -> Iterator[Piece]:
        """The documents of `split`, the same on each call; raises UserError for wrong input."""

    def num_words(self, split: str) -> int | None:
        """Original words, where the corpus defines them."""


class Pydocs:
    """The language documentation that CPython carries for `help()`: `pydoc_data.topics`, a document each topic."""

    separate = True

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        from pydoc_data.topics import topics

        self._topics = dict(sorted(topics.items()))
        self._split = SeededSplit(self._read, config.val_fraction, config.split_seed, "pydoc_data.topics")
        self.notes = [self._split.note]

    def _read(self) -> Iterator[Piece]:
        return chain.from_iterable(map(document, self._topics.values()))

    def has(self, split: str) -> bool:
        """Both splits are there."""
        return True

    def content_hash(self, split: str) -> str:
        """sha256 of all topics: they differ between releases of Python."""
        return hashlib.sha256(json.dumps(self._topics).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """Topics, in the order of their names."""
        return self._split.pieces(split)

    def num_words(self, split: str) -> None:
        """Not defined."""


class Text:
    """The user's own files: .txt, .md, .jsonl, .csv, .parquet, or folders of them.

    `dataset.path` is divided by the seed; `train_path` and `val_path` are taken as they are, and `path` with
    `val_path` makes all of `path` the training part.
    """

    separate = True

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        if config.path and config.train_path:
            raise UserError(
                f"dataset.path={config.path} and dataset.train_path={config.train_path} are both given. Give "
                f"dataset.path alone (divided by dataset.split_seed), or train_path and val_path."
            )
        self._column = config.text_column
        self._config = config
        self._split: SeededSplit | None = None
        self.notes: list[str] = []
        if config.path and not config.val_path:
            self._files = {"train": text_files(Path(config.path).expanduser(), "dataset.path")}
            self._files["val"] = self._files["train"]
            self._split = SeededSplit(
                lambda: self._read("train"), config.val_fraction, config.split_seed, f"dataset.path={config.path}"
            )
            return
        given = {
            "train": ("dataset.path", config.path) if config.path else ("dataset.train_path", config.train_path),
            "val": ("dataset.val_path", config.val_path),
        }
        self._files = {
            split: text_files(Path(path).expanduser(), key) for split, (key, path) in given.items() if path is not None
        }
        if not self._files:
            raise UserError(
                "dataset.path is null: dataset=text reads your own text. Give dataset.path=FILE_OR_FOLDER "
                "(.txt, .md, .jsonl, .csv, .parquet), or dataset.train_path and dataset.val_path."
            )

    def _read(self, split: str) -> Iterator[Piece]:
        return chain.from_iterable(read_documents(path, self._column) for path in self._files[split])

    def has(self, split: str) -> bool:
        """There are files for `split`."""
        return split in self._files

    def content_hash(self, split: str) -> str:
        """sha256 of the files' contents."""
        return hash_files(self._files[split])

    def pieces(self, split: str) -> Iterator[Piece]:
        """Documents, files in the order of their paths."""
        if self._split is None:
            return self._read(split)
        if not self.notes:
            self.notes.append(self._split.note)
        return self._split.pieces(split)

    def num_words(self, split: str) -> None:
        """Not defined."""


CORPORA: dict[str, Callable[[DatasetConfig, Path], Corpus]] = {
    "pydocs": Pydocs,
    "wikitext2": Wikitext2,
    "text": Text,
    "labelled": Labelled,
    "instructions": Instructions,
}


def open_corpus(config: DatasetConfig, cache: Path) -> Corpus:
    """The reader that `dataset.corpus` names; `cache` is where downloads are kept.

    Raises:
        UserError: An unknown reader or protocol, missing or empty files, nothing to read.
    """
    if config.corpus not in CORPORA:
        raise UserError(f"dataset.corpus={config.corpus} is unknown. Choose one of: {', '.join(CORPORA)}.")
    if config.protocol != "clean" and config.corpus != "wikitext2":
        raise UserError(
            f"dataset.protocol={config.protocol} is defined for dataset=wikitext2 only; use dataset.protocol=clean."
        )
    return CORPORA[config.corpus](config, cache)
