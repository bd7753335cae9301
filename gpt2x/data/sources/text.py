"""The user's own files: text and tables, or folders of them (`gpt2x.data.reading.folders.DATA_FILES`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, SeededSplit
from gpt2x.data.reading.files import SUFFIXES, hash_files, read_documents
from gpt2x.data.reading.folders import list_folder, require_data, require_kind
from gpt2x.data.sources.base import Source
from gpt2x.errors import UserError


class Text(Source):
    """Text files. `dataset.path` is divided by the seed; `train_path` and `val_path` are taken as they are.

    `path` with `val_path` makes all of `path` the training part.
    """

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        super().__init__(config, cache)
        if config.path and config.train_path:
            raise UserError(
                f"dataset.path={config.path} and dataset.train_path={config.train_path} are both set. Give only "
                f"dataset.path (divided by dataset.split_seed), or train_path and val_path."
            )
        self._split: SeededSplit | None = None
        if config.path and not config.val_path:
            files = self._files_of(config.path, "dataset.path")
            self._files = {"train": files, "val": files}
            self._split = SeededSplit(
                lambda: self._read("train"), config.val_fraction, config.split_seed, f"dataset.path={config.path}"
            )
            return
        paths = {
            "train": ("dataset.path", config.path) if config.path else ("dataset.train_path", config.train_path),
            "val": ("dataset.val_path", config.val_path),
        }
        self._files = {split: self._files_of(path, key) for split, (key, path) in paths.items() if path is not None}
        if not self._files:
            raise UserError(
                "dataset.path=null: dataset=text reads your own text. Give dataset.path=FILE_OR_FOLDER "
                f"({', '.join(SUFFIXES)}), or dataset.train_path and dataset.val_path."
            )

    def _files_of(self, path: str, key: str) -> list[Path]:
        """The files that a path stands for: itself, or those below it; empty ones in a folder are left out."""
        location = Path(path).expanduser()
        if not location.is_dir():
            return [require_kind(location, key, SUFFIXES, "texts")]
        listing = require_data(list_folder(location, SUFFIXES, below=True), location, key, SUFFIXES)
        if note := listing.note(location):
            self.notes.append(note)
        return listing.files

    def _read(self, split: str) -> Iterator[Piece]:
        num_blank: Counter[str] = Counter()
        for path in self._files[split]:
            yield from read_documents(path, self.config.text_column, partial(num_blank.update, [path.name]))
        notes = [f"{count:,} rows of {name} have no text and are left out" for name, count in num_blank.items()]
        self.reading_notes = list(dict.fromkeys(self.reading_notes + notes))

    def has(self, split: str) -> bool:
        """Return True if there are files for `split`."""
        return split in self._files

    def content_hash(self, split: str) -> str:
        """Return the sha256 of the files' contents."""
        return hash_files(self._files[split])

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the documents of `split`, in the order of the files' paths."""
        if self._split is None:
            return self._read(split)
        if self._split.note not in self.notes:
            self.notes.append(self._split.note)
        return self._split.pieces(split)


SOURCE = Text
