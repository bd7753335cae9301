"""A trained adapter in memory, and whether it fits a model and the weights that it was trained beside."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, pieces
from gpt2x.config import ModelConfig
from gpt2x.config.patterns import FUSED, SEGMENTS
from gpt2x.convert import WeightsSource
from gpt2x.convert.special_ids import SpecialIds
from gpt2x.errors import UserError
from gpt2x.lora.shapes import A, B, linear_of, module_shapes
from gpt2x.model.stats import HEAD


@dataclass(frozen=True)
class Product:
    """What an adapter adds to the weight of one module: scale * a @ b, with a (in, r) and b (r, out) in fp32."""

    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def rank(self) -> int:
        """The rank r."""
        return self.a.shape[1]

    def box(self, rows: slice, columns: slice) -> np.ndarray:
        """Return the values that are added in a box of the weight."""
        return self.a[rows] @ self.b[:, columns] * np.float32(self.scale)


@dataclass(frozen=True)
class Adapter:
    """The products of all adapted modules of a model.

    Attributes:
        path: the directory.
        products: module -> product; a module is called, for example, `h.0.attn.q`.
        dropout: the rate with which it was trained.
        rank_stabilized: whether a scale is alpha / sqrt(r) instead of alpha / r.
        base: the directory of the weights beside which it was trained; None if the adapter does not state it.
        fingerprint: `fingerprint` of those weights; None if the adapter does not state it.
        num_layers: number of layers of the model; None if the adapter does not state it.
        head: a classifier's `score.weight` (K, D), trained with the adapter; None for a language model.
        labels: names of the classes; None if there is no head, or if the adapter does not state them.
        is_added_by_load: whether `load=` of its file adds the products already, as of MindFormers' whole models.
        is_of_stored: whether it was trained beside the weights as they are stored, by PEFT, not as gpt2x reads them.
        tokenizer_dir: of the tokenizer and the template with which it was trained; None: those of its base.
        special_ids: BOS, EOS and PAD of its training; None if the adapter does not state them, and the base's count.
    """

    path: Path
    products: dict[str, Product]
    dropout: float = 0.0
    rank_stabilized: bool = False
    base: str | None = None
    fingerprint: str | None = None
    num_layers: int | None = None
    head: np.ndarray | None = None
    labels: list[str] | None = None
    is_added_by_load: bool = False
    is_of_stored: bool = False
    tokenizer_dir: Path | None = None
    special_ids: SpecialIds | None = None

    @property
    def name(self) -> str:
        """The name of its run, or of its directory."""
        path = self.path.absolute()
        return path.parents[1].name if path.parent.name == "checkpoints" else path.name

    def factors(self) -> dict[str, np.ndarray]:
        """Return the factors as logical tensors by name."""
        factors = {f"{module}.{A}": product.a for module, product in self.products.items()}
        return factors | {f"{module}.{B}": product.b for module, product in self.products.items()}

    def adapted(self, model: ModelConfig) -> ModelConfig:
        """Return `model` with this adapter. With a head it is a classifier; classes default to transformers' names."""
        if self.head is None:
            return model
        return replace(model, labels=self.labels or [f"LABEL_{i}" for i in range(len(self.head))])


def check_fits(adapter: Adapter, source: WeightsSource, load: str) -> None:
    """Check that a model has the modules that an adapter changes, in the adapter's sizes, as it was trained beside.

    Args:
        adapter: the adapter.
        source: the model in the directory `load`.
        load: the directory, for the message.

    Raises:
        UserError: lists the modules that the model lacks, has in a different size, or has with scaled queries.
    """
    model = source.model
    shapes = module_shapes(model)
    faults = [
        f"{module} {(product.a.shape[0], product.b.shape[1])} instead of {shapes.get(module, 'nothing')}"
        for module, product in adapter.products.items()
        if (product.a.shape[0], product.b.shape[1]) != shapes.get(module)
    ]
    if adapter.head is not None and adapter.head.shape[1] != model.hidden_size:
        faults.append(f"{HEAD} {adapter.head.shape} instead of (classes, {model.hidden_size})")
    if faults:
        shown = ", ".join(faults[:5]) + (f" and {len(faults) - 5} more" if len(faults) > 5 else "")
        base = f"load={adapter.base}, the base" if adapter.base else "the base"
        raise UserError(
            f"adapters={adapter.path} is an adapter of a different model than load={load} ({model.num_layers} layers, "
            f"hidden size {model.hidden_size}): {shown}. Give {base} on which it was trained."
        )
    if adapter.is_of_stored and (scaled := scaled_queries(adapter, source)):
        raise UserError(
            f"adapters={adapter.path} changes the queries of {', '.join(scaled[:5])}, but config.json of load={load} "
            "has scale_attn_by_inverse_layer_idx=true or scale_attn_weights=false, which gpt2x computes by scaling the "
            "queries of the model, not of an adapter. Merge it with PEFT (merge_and_unload), and give that as load=."
        )


def scaled_queries(adapter: Adapter, source: WeightsSource) -> list[str]:
    """Return the modules of an adapter with queries that `source` multiplies with a factor as it reads them."""
    factors = dict(enumerate(source.query_factors))
    return [
        module
        for module in adapter.products
        if linear_of(module)[0].endswith(FUSED)
        and linear_of(module)[1] in (None, SEGMENTS.index("attn.q"))
        and factors.get(int(module.split(".")[1]), 1.0) != 1.0
    ]


def check_base(adapters: Sequence[Adapter], weights: LazyTensors, load: str) -> None:
    """Check that adapters were trained beside these weights, if they state which. The weights are hashed once.

    Raises:
        UserError: an adapter was trained beside different weights, or these have its products already.
    """
    for adapter in adapters:
        paths = Path(load).expanduser().absolute(), adapter.path.absolute()
        if adapter.is_added_by_load and (paths[0] in (paths[1], *paths[1].parents) or paths[1] in paths[0].parents):
            raise UserError(
                f"load={load} adds the LoRA factors of its file already, so adapters={adapter.path} would add them "
                "twice. Drop the adapter, or give load= the base without them."
            )
    if all(adapter.fingerprint is None for adapter in adapters):
        return
    actual = fingerprint(weights)
    for adapter in adapters:
        if adapter.fingerprint not in (None, actual):
            raise UserError(
                f"adapters={adapter.path} was trained beside different weights than those of load={load} (sha256 "
                f"{str(adapter.fingerprint)[:12]}, here {actual[:12]}). Give load={adapter.base}, or the directory to "
                "which they have moved."
            )


def adapted_model(model: ModelConfig, adapters: Sequence[Adapter], load: str) -> ModelConfig:
    """Return the model that serves all of several adapters, each of which fits `model`.

    Raises:
        UserError: some have a head and others none, or their classes differ, so that no one model serves them all.
    """
    models = [adapter.adapted(model) for adapter in adapters] or [model]
    if any(other.labels != models[0].labels for other in models):
        kinds = "; ".join(
            f"{adapter.name}: {', '.join(other.labels) if other.labels else 'a language model'}"
            for adapter, other in zip(adapters, models, strict=True)
        )
        raise UserError(f"load={load}: adapters= make different models of it ({kinds}). Use them in separate calls.")
    return models[0]


def special_ids_with(adapters: Sequence[Adapter], source: WeightsSource) -> SpecialIds | None:
    """Return the ids that the first adapter states, else those of the model; None if the tokenizer's count.

    A model whose files name no PAD says nothing of the head that an adapter brings.
    """
    ids = next((adapter.special_ids for adapter in adapters if adapter.special_ids), source.special_ids)
    has_head = any(adapter.head is not None for adapter in adapters)
    return None if ids is not None and ids.pad is None and has_head else ids


def fingerprint(weights: LazyTensors) -> str:
    """Return the sha256 of logical tensors as fp32, which depends on names, shapes and values only."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights.specs[name].shape}".encode())
        for piece in pieces(weights.box(name)):
            digest.update(np.ascontiguousarray(piece, np.float32).data)
    return digest.hexdigest()
