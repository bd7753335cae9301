"""What a source of text is.

To add one, write a file in this package with a subclass of `Source` as `SOURCE`, and a YAML file in conf/dataset whose
`corpus` is the file's name. A source streams the text of a split; it knows nothing of tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2x.config import DatasetConfig
from gpt2x.data.cache import code_hash, digest_of
from gpt2x.data.reading.documents import Piece
from gpt2x.extensions import settings

PATHS = ("path", "train_path", "val_path")
LOCATIONS = (*PATHS, "url", "sha256", "archive_folder")  # keys that say where content lies


@dataclass
class NoSettings:
    """The settings of a source that has none of its own."""


class Source(ABC):
    """Reads one kind of corpus.

    Attributes:
        separate: True: documents are separated by EOS and no token is lost. False: one stream, its tail dropped.
        row_form: The file of gpt2x/data/rows whose rows the corpus is made for; every corpus can become `blocks`.
        protocols: What `dataset.protocol` may be.
        Settings: A dataclass of the keys that only this source has, `dataset.settings`.
        settings: These keys, typed.
        config: The dataset's keys.
        notes: What a user should know of the corpus, for panels.
        reading_notes: What reading the text has left out; kept with the rows in the cache.
    """

    separate: bool = True
    row_form: str = "blocks"
    protocols: tuple[str, ...] = ("clean",)
    Settings: type[Any] = NoSettings

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        """
        Args:
            config: The dataset's keys.
            cache: The directory for downloads.

        Raises:
            UserError: Wrong input; unknown keys in `dataset.settings`.
        """
        self.config, self.cache = config, cache
        self.settings: Any = settings(self.Settings, config.settings, "dataset.settings")
        self.notes: list[str] = []
        self.reading_notes: list[str] = []

    @abstractmethod
    def has(self, split: str) -> bool:
        """Return True if there is text for `split` (train | val)."""

    @abstractmethod
    def content_hash(self, split: str) -> str:
        """Return the sha256 of everything that the text of `split` is read from, such as the bytes of its files."""

    @abstractmethod
    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the documents of `split`, the same on each call; raise UserError if the input is wrong."""

    def num_words(self, split: str) -> int | None:
        """Return the number of original words, if the corpus defines them."""
        return None

    def fingerprint(self, split: str) -> str:
        """Return the sha256 of everything that can decide the text of `split`; every cache key contains it.

        Every key of `dataset` counts, whether this source reads it or not: a source that begins to read a key, or has
        settings of its own, cannot get rows of other settings. Where the content lies does not count: `content_hash`
        stands for it. Of the paths it counts which ones are set, since that decides how text is split. The source's
        file counts too: rows are prepared again after it was edited.
        """
        keys = {key: value for key, value in asdict(self.config).items() if key not in LOCATIONS}
        paths = [getattr(self.config, key) is not None for key in PATHS]
        return digest_of([split, self.content_hash(split), keys, paths, code_hash(type(self))])
