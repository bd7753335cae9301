"""The values that training begins with: a resumed checkpoint's, loaded weights, an adapter's, or random ones."""

from __future__ import annotations

import numpy as np

from gpt2x.convert.added_rows import with_added_rows
from gpt2x.convert.fit import Finite
from gpt2x.lora.cells import initial_factors
from gpt2x.model.classifier import WithFreshHead
from gpt2x.model.gpt2 import initial_weights
from gpt2x.model.stats import HEAD, keeps_head
from gpt2x.parallel.placement import Readable, Whole
from gpt2x.train.decision import Decision


def initial_values(decision: Decision) -> Readable:
    """Return what checkpoints of a new run hold before its first step, as logical tensors."""
    if decision.trainable.is_adapter:
        return Whole(initial_adapter(decision))
    if decision.source.weights:
        return loaded_weights(decision)
    return initial_weights(decision.model, decision.config.seed)


def loaded_weights(decision: Decision) -> Readable:
    """Return the weights of `load=`, with rows for added tokens, and a fresh head if they have none for the labels."""
    model, source = decision.model, decision.source.weights
    assert source is not None
    assert model.vocab_size is not None
    weights = Finite(with_added_rows(source.weights(), model.vocab_size), f"load={source.path}")
    if not model.is_classifier or keeps_head(model, source.model):
        return weights
    return WithFreshHead(weights, model, decision.config.seed)


def initial_adapter(decision: Decision) -> dict[str, np.ndarray]:
    """Return the factors of the adapter from which training continues, or fresh ones; and a classifier's head."""
    model, config, adapter = decision.model, decision.config, decision.source.adapter
    values = adapter.factors() if adapter else initial_factors(config.lora, model, config.seed)
    if model.labels is not None:
        shape = (len(model.labels), model.hidden_size)
        has_head = adapter is not None and adapter.head is not None
        values[HEAD] = adapter.head if has_head else loaded_weights(decision).read(HEAD, (0, 0), shape)
    return values
