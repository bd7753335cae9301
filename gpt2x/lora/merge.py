"""Weights with a merged adapter: W + s A B, computed for each box that is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, Shape, Spec
from gpt2x.config import ModelConfig
from gpt2x.convert import WeightsSource
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, check_fits, special_ids_with
from gpt2x.lora.shapes import linear_of
from gpt2x.model.stats import HEAD


class MergedWeights:
    """A model with an adapter merged into its weights, as a `WeightsSource`.

    Args:
        source: the model; its files stay as they are.
        adapter: what is merged; it fits the model.
        sign: 1 merges the adapter; -1 takes it out of weights into which it was merged, up to rounding.

    Raises:
        UserError: the adapter is of a different model, or has a head and sign is -1: the head before it is lost.
    """

    def __init__(self, source: WeightsSource, adapter: Adapter, sign: int = 1):
        check_fits(adapter, source, str(source.path))
        if sign < 0 and adapter.head is not None:
            base = f"Use its base, {adapter.base}." if adapter.base else "Use its base."
            raise UserError(
                f"--unmerge {adapter.path} is not possible: its classifier's head replaced the head of its base. {base}"
            )
        self.source, self.adapter, self.sign = source, adapter, sign
        self.kind: str = source.kind
        self.path: Path = source.path
        self.model: ModelConfig = adapter.adapted(source.model)
        self.query_factors: Sequence[float] = source.query_factors
        self.tokenizer_dir: Path | None = (adapter.tokenizer_dir if sign > 0 else None) or source.tokenizer_dir
        self.special_ids: SpecialIds | None = special_ids_with([adapter] if sign > 0 else [], source)

    def weights(self) -> LazyTensors:
        """Return the logical tensors in their stored dtype; sums are computed in fp32."""
        return merged(self.source.weights(), self.adapter, self.sign)

    def verify(self) -> None:
        """Hash the files of the model.

        Raises:
            UserError: a file is damaged.
        """
        self.source.verify()


def merged(weights: LazyTensors, adapter: Adapter, sign: int = 1) -> LazyTensors:
    """Return the weights with an adapter added (sign 1) or subtracted (-1).

    Sums are computed in fp32 and returned in the dtype of the weight. An adapter's head replaces the model's.
    """
    by_weight: dict[str, list[str]] = {}
    for module in adapter.products:
        by_weight.setdefault(f"{linear_of(module)[0]}.weight", []).append(module)

    def read(name: str, start: Shape, shape: Shape) -> np.ndarray:
        if name == HEAD and adapter.head is not None:
            return adapter.head[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
        values = weights.read(name, start, shape)
        if name not in by_weight:
            return values
        total = values.astype(np.float32)
        for module in by_weight[name]:
            product = adapter.products[module]
            width = product.b.shape[1]
            first = (linear_of(module)[1] or 0) * width  # the module's columns of the weight
            left, right = max(start[1], first), min(start[1] + shape[1], first + width)
            if left < right:
                box = product.box(slice(start[0], start[0] + shape[0]), slice(left - first, right - first))
                total[:, left - start[1] : right - start[1]] += sign * box
        return total.astype(values.dtype)

    specs = weights.specs
    if adapter.head is not None:  # replaces the head of a language model or of a classifier
        specs = {name: spec for name, spec in specs.items() if name not in ("lm_head.weight", HEAD)}
        specs[HEAD] = Spec(adapter.head.shape, adapter.head.dtype)
    return LazyTensors(specs, read)


def changed_weights(adapter: Adapter) -> set[str]:
    """Return the names of the weights that an adapter changes."""
    weights = {f"{linear_of(module)[0]}.weight" for module in adapter.products}
    return weights if adapter.head is None else weights | {HEAD}
