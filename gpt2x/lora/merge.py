"""Adapters merged into the weights that they stand beside: W + s A B, read box by box (no mindspore)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, Shape, Spec
from gpt2x.config import ModelConfig
from gpt2x.convert import Source
from gpt2x.errors import UserError
from gpt2x.lora.adapter import Adapter, check_fits
from gpt2x.lora.shapes import linear_of
from gpt2x.model.stats import HEAD


class MergedSource:
    """A model with an adapter in its weights.

    Args:
        source: the model, which is left as it is.
        adapter: what is merged.
        sign: 1; -1 takes an adapter out of weights that it was merged into, up to rounding.

    Raises:
        UserError: the adapter is of another model, or is to be taken out and has a head, which replaced another.
    """

    def __init__(self, source: Source, adapter: Adapter, sign: int = 1):
        check_fits(adapter, source.model, str(source.path))
        if sign < 0 and adapter.head is not None:
            raise UserError(
                f"--unmerge {adapter.path}: it has a classifier's head, in whose place its base may have had another; "
                "the base is " + (adapter.base or "not known")
            )
        self.source, self.adapter, self.sign = source, adapter, sign
        self.kind: str = source.kind
        self.path: Path = source.path
        self.model: ModelConfig = adapter.adapted(source.model)
        self.tokenizer_dir: Path | None = source.tokenizer_dir

    def weights(self) -> LazyTensors:
        """Logical tensors in their stored dtype; sums are taken in fp32."""
        return merged(self.source.weights(), self.adapter, self.sign)

    def verify(self) -> None:
        """Hash the files of the source; raises UserError naming a damaged one."""
        self.source.verify()


def merged(weights: LazyTensors, adapter: Adapter, sign: int = 1) -> LazyTensors:
    """The weights with an adapter added (sign 1) or taken away (-1), each in its dtype, summed in fp32; its head."""
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
    if adapter.head is not None:  # in the place of a language model's, or another classifier's
        specs = {name: spec for name, spec in specs.items() if name not in ("lm_head.weight", HEAD)}
        specs[HEAD] = Spec(adapter.head.shape, adapter.head.dtype)
    return LazyTensors(specs, read)


def changed(adapter: Adapter) -> set[str]:
    """The names of the weights that an adapter changes."""
    weights = {f"{linear_of(module)[0]}.weight" for module in adapter.products}
    return weights if adapter.head is None else weights | {HEAD}
