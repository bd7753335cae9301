"""What an export format defines, and the model that is exported."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpt2x.convert import WeightsSource, load_source
from gpt2x.convert.fit import not_finite
from gpt2x.extensions import Extensions
from gpt2x.lora.adapter import check_base, check_fits
from gpt2x.lora.merge import MergedWeights
from gpt2x.lora.open import open_adapter

log = logging.getLogger(__name__)
FORMATS = Extensions("gpt2x.formats", "export", "--to")


@dataclass(frozen=True)
class Change:
    """An adapter that is merged into the weights, or taken out of them.

    Attributes:
        adapter: directory of the adapter.
        sign: 1 to merge it, -1 to unmerge it.
    """

    adapter: str
    sign: int


class Export(Protocol):
    """Writes a directory in one format."""

    def __call__(self, source: Path, output: Path, change: Change | None) -> str:
        """Write `output`, which is empty or does not exist, and return what was written, in words.

        Raises:
            UserError: a directory cannot be read or written, or the change does not fit.
        """


def open_model(source_dir: Path, change: Change | None) -> WeightsSource:
    """Open the model that is exported: the one at `source_dir`, with or without an adapter.

    Raises:
        UserError: a directory cannot be read, or the adapter does not fit.
    """
    source: WeightsSource = load_source(source_dir)
    if change is None:
        return source
    adapter = open_adapter(change.adapter)
    if change.sign > 0:
        check_fits(adapter, source, str(source_dir))
        check_base([adapter], source.weights(), str(source_dir))
    return MergedWeights(source, adapter, change.sign)


def describe(source: WeightsSource) -> str:
    """Return the number of tensors and the name of the model; a warning names tensors that are not finite."""
    if wrong := not_finite(source.weights()):
        log.warning(
            "%s: values of %s are NaN or infinite; they were copied as they are, and such a model computes nothing.",
            source.path, ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
        )  # fmt: skip
    return f"{len(source.weights())} tensors of {source.model.name}"
