"""Rows of the embedding for the tokens that `tokenizer.extend` adds."""

from __future__ import annotations

from functools import cache

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors, Shape, Spec, pieces
from gpt2x.parallel.placement import VOCABULARY


def with_added_rows(weights: LazyTensors, num_rows: int) -> LazyTensors:
    """Return the weights with at least `num_rows` rows in each table of tokens. Old rows stay bit for bit.

    Each new row is the mean of the old ones (Hewitt, "Initializing New Word Embeddings for Pretrained Language
    Models", 2021). transformers' `resize_token_embeddings` takes the same mean and adds noise of 1e-9 of their
    covariance. In the head, the logit of a mean row is the mean of the old logits. So k tokens added to n take at most
    k / (n + k) of the probability; the logit of a random row can be far above the others.
    """
    tables = {name: weights.specs[name] for name in VOCABULARY if name in weights}
    if all(spec.shape[0] >= num_rows for spec in tables.values()):
        return weights

    @cache
    def mean(name: str) -> np.ndarray:
        total = sum(piece.sum(axis=0, dtype=np.float64) for piece in pieces(weights.box(name)))
        return (total / tables[name].shape[0]).astype(tables[name].dtype)

    def read(name: str, start: Shape, shape: Shape) -> np.ndarray:
        num_old = max(0, min(shape[0], weights.shapes[name][0] - start[0]))
        if name not in tables or num_old == shape[0]:
            return weights.read(name, start, shape)
        old = weights.read(name, (min(start[0], weights.shapes[name][0]), start[1]), (num_old, shape[1]))
        new = mean(name)[start[1] : start[1] + shape[1]]
        return np.concatenate([old, np.tile(new, (shape[0] - num_old, 1))])

    return LazyTensors(
        weights.specs | {name: Spec((num_rows, *spec.shape[1:]), spec.dtype) for name, spec in tables.items()}, read
    )
