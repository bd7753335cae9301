"""The sources by name."""

from __future__ import annotations

from pathlib import Path

from gpt2x.config import DatasetConfig
from gpt2x.data.sources.base import Source
from gpt2x.errors import UserError
from gpt2x.extensions import Extensions

SOURCES = Extensions("gpt2x.data.sources", "SOURCE", "dataset.corpus")


def source_of(config: DatasetConfig) -> type[Source]:
    """Return the class of the source that `dataset.corpus` names; reads nothing.

    Raises:
        UserError: An unknown source.
    """
    source: type[Source] = SOURCES.load(config.corpus)
    return source


def open_corpus(config: DatasetConfig, cache: Path) -> Source:
    """Return the source that `dataset.corpus` names; downloads are kept in `cache`.

    Raises:
        UserError: An unknown source or protocol, missing or empty files, nothing to read.
    """
    source = source_of(config)
    if config.protocol not in source.protocols:
        raise UserError(
            f"dataset.protocol={config.protocol} is not defined for dataset.corpus={config.corpus}. "
            f"Choose one of: {', '.join(source.protocols)}."
        )
    return source(config, cache)
