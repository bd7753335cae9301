"""The language documentation that CPython carries for `help()`: `pydoc_data.topics`, one document per topic."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gpt2x.config import DatasetConfig
from gpt2x.data.reading.documents import Piece, SeededSplit, document
from gpt2x.data.sources.base import Source


class Pydocs(Source):
    """The topics, in the order of their names; the validation part is drawn by the seed."""

    def __init__(self, config: DatasetConfig, cache: Path) -> None:
        from pydoc_data.topics import topics

        super().__init__(config, cache)
        self._topics = dict(sorted(topics.items()))
        self._split = SeededSplit(self._read, config.val_fraction, config.split_seed, "pydoc_data.topics")
        self.notes = [self._split.note]

    def _read(self) -> Iterator[Piece]:
        return chain.from_iterable(map(document, self._topics.values()))

    def has(self, split: str) -> bool:
        """Return True: both splits exist."""
        return True

    def content_hash(self, split: str) -> str:
        """Return the sha256 of all topics, which differ between releases of Python."""
        return hashlib.sha256(json.dumps(self._topics).encode()).hexdigest()

    def pieces(self, split: str) -> Iterator[Piece]:
        """Yield the topics of `split`."""
        return self._split.pieces(split)


SOURCE = Pydocs
