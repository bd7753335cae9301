"""What every opened directory of weights has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.config import ModelConfig
from gpt2x.convert.special_ids import SpecialIds


class WeightsSource(Protocol):
    """An opened directory whose weights have been checked to fit `model`."""

    @property
    def kind(self) -> str:
        """The format: gpt2x, huggingface or mindformers."""

    @property
    def path(self) -> Path:
        """The directory."""

    @property
    def model(self) -> ModelConfig:
        """The model's configuration, as the directory states it."""

    @property
    def tokenizer_dir(self) -> Path | None:
        """The directory of the tokenizer's files, or None."""

    @property
    def query_factors(self) -> Sequence[float]:
        """By layer, the factors with which `weights` multiplies the stored queries; empty if they are as stored."""

    @property
    def special_ids(self) -> SpecialIds | None:
        """BOS, EOS and PAD, as the directory states them; None if it states none, and the tokenizer's count."""

    def weights(self) -> LazyTensors:
        """Return the logical tensors in their stored dtype. Each is read (read-only) on access, whole or as a box."""

    def verify(self) -> None:
        """Hash the files, if the directory states hashes.

        Raises:
            UserError: a file is damaged.
        """
