"""Names and shapes that a model's weights must have, compared in one go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpt2x.checkpoint.tensors import LazyTensors
from gpt2x.config import ModelConfig
from gpt2x.errors import UserError
from gpt2x.model.stats import tensor_shapes


def check_weights(weights: Mapping[str, np.ndarray], model: ModelConfig, *, origin: str = "weights") -> None:
    """Compares names and shapes with the model's logical tensors; reads no values of a `LazyTensors`.

    Raises:
        UserError: Lists every missing, unexpected and mis-shaped name.
    """
    expected = tensor_shapes(model)
    found = weights.shapes if isinstance(weights, LazyTensors) else {name: w.shape for name, w in weights.items()}
    faults = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(found[name])} instead of {tuple(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name]) != tuple(shape)
        ],
    }
    if any(faults.values()):
        listed = "".join(f"\n  {fault}: {', '.join(names)}" for fault, names in faults.items() if names)
        raise UserError(
            f"{origin}: the weights do not fit the model ({model.num_layers} layers, hidden size {model.hidden_size}, "
            f"{model.max_seq_len} positions, vocabulary {model.vocab_size}); nothing was loaded. Use the "
            f"configuration that belongs to these weights, or complete files.{listed}"
        )
