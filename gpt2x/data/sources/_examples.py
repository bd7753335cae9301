"""Sources of examples, kept in memory: which files they are in, and which of them are for validation."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.download import fetch_archive
from gpt2x.data.reading.folders import Listing, list_folder
from gpt2x.data.reading.tables import list_names
from gpt2x.data.sources.base import Source
from gpt2x.errors import UserError

VAL_NAMES = ("dev", "val", "valid", "validation", "test")  # in place of `train` in a file's name; the first match wins
Example = TypeVar("Example")


class Examples(Source, Generic[Example]):
    """What sources of examples share.

    `dataset.path` is a file, divided by the seed, or a folder. The folder has one file whose name contains `train`,
    and may have one with `dev`, `val` or `test` in its place. `train_path` and `val_path` name the files instead.

    Raises:
        UserError: No such files, or a faulty row; with file and line.
    """

    suffixes: tuple[str, ...]

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        super().__init__(config, cache)
        paths = {"train": config.train_path, "val": config.val_path}
        files = {split: Path(path).expanduser() for split, path in paths.items() if path is not None}
        keys = {split: f"dataset.{split}_path" for split in files}
        if config.path is not None or not files:
            location, key = self._locate()
            splits = self._find_splits(location, key) if location.is_dir() else {"train": location}
            files, keys = splits | files, dict.fromkeys(splits, key) | keys
        self._examples = {split: self.read(file, keys[split]) for split, file in files.items()}
        if "val" not in files and files.get("train") and config.path is not None:
            self._divide(config.path)

    @abstractmethod
    def read(self, path: Path, key: str) -> list[Example]:
        """Return the examples of a file that the configuration key `key` named."""

    def _locate(self) -> tuple[Path, str]:
        """The file or folder, and the key that it comes from."""
        config = self.config
        if config.path is not None:
            return Path(config.path).expanduser(), "dataset.path"
        if config.url is None or config.sha256 is None:
            origin = f" (published at {config.url}; with its dataset.sha256=… it is downloaded)" if config.url else ""
            raise UserError(
                f"dataset.path=null: dataset={config.name} needs a local dataset.path=FILE_OR_FOLDER "
                f"({', '.join(self.suffixes)}), or dataset.train_path and dataset.val_path{origin}."
            )
        folder, _ = fetch_archive(config.url, config.sha256, self.cache)
        return folder / config.archive_folder, "dataset.url"

    def _find_splits(self, folder: Path, key: str) -> dict[str, Path]:
        """The files of a folder by split: the training file and the one named like it, or a single file for both."""
        listing = list_folder(folder, self.suffixes, below=False)
        files = {path.name: path for path in listing.files}
        training = [name for name in files if "train" in name]
        splits = {"train": files[training[0]]} if len(training) == 1 else {}
        if splits:
            pair = next((other for word in VAL_NAMES if (other := training[0].replace("train", word)) in files), None)
            splits |= {"val": files[pair]} if pair else {}
        elif len(files) == 1:
            splits = {"train": listing.files[0]}
        else:
            raise UserError(
                f"{key}={folder} must have one file of {', '.join(self.suffixes)} whose name contains `train`; it has "
                f"{list_names(files)}. Give dataset.train_path and dataset.val_path."
            )
        unused = [name for name, path in files.items() if path not in splits.values()]
        if note := Listing(list(splits.values()), unused + listing.others).note(folder):
            self.notes.append(note)
        return splits

    def _divide(self, path: str) -> None:
        """Draw round(val_fraction * examples) for validation: a function of the seed and of the number of examples."""
        config, examples = self.config, self._examples["train"]
        if not 0 < config.val_fraction < 1:
            raise UserError(f"dataset.val_fraction={config.val_fraction} must lie between 0 and 1, such as 0.1.")
        count = round(config.val_fraction * len(examples))
        if not 0 < count < len(examples):
            raise UserError(
                f"dataset.path={path} has {len(examples)} examples, too few to draw dataset.val_fraction="
                f"{config.val_fraction} of them. Give more, or dataset.train_path and dataset.val_path."
            )
        random = np.random.Generator(np.random.Philox(config.split_seed))
        drawn = set(random.permutation(len(examples))[:count].tolist())
        self._examples = {
            "train": [example for i, example in enumerate(examples) if i not in drawn],
            "val": [example for i, example in enumerate(examples) if i in drawn],
        }
        self.notes.append(f"{count} of {len(examples)} examples drawn for validation (seed {config.split_seed})")

    def has(self, split: str) -> bool:
        """Return True if there are examples for `split`."""
        return split in self._examples

    def examples(self, split: str) -> list[Example]:
        """Return the examples of a split."""
        return self._examples[split]
