"""GPT-2 with a classification head on a text's last token, as transformers' GPT2ForSequenceClassification.

Shapes in comments are those of the line's result. Legend: B batch, T tokens, D hidden, K classes.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from mindspore import dtype as mstype
from mindspore import nn, ops

from gpt2x.config import HardwareConfig, ModelConfig
from gpt2x.model.gpt2 import GPT2, initial_weights, name_parameters, zeros
from gpt2x.model.stats import HEAD


class Score(nn.Cell):
    """x W^T with W (K, D), in fp32 and without a bias (modeling_gpt2.py, `self.score`)."""

    def __init__(self, num_labels: int, hidden_size: int):
        super().__init__()
        self.weight = zeros(num_labels, hidden_size)
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x):
        """x (B, D) -> (B, K)."""
        return self.product(x, self.weight)  # (B, K)


class Classifier(GPT2):
    """The transformer with `score` instead of a language model's head."""

    def __init__(self, model: ModelConfig, hardware: HardwareConfig, recompute: str = "none"):
        super().__init__(model, hardware, recompute)
        assert model.labels is not None
        self.score = Score(len(model.labels), model.hidden_size)
        self.pick = ops.BatchMatMul()
        name_parameters(self)

    def class_logits(self, hidden, last):
        """hidden (B, T, D), last (B, T): 1 at a text's last token, 0 elsewhere -> (B, K) fp32."""
        marks = ops.cast(last, hidden.dtype).reshape(last.shape[0], 1, -1)  # (B, 1, T)
        picked = ops.cast(self.pick(marks, hidden), mstype.float32).reshape(-1, self.hidden_size)  # (B, D)
        return self.score(picked)  # (B, K)

    def class_loss(self, hidden, last, labels):
        """Return each text's negative log-likelihood in nats: labels (B,) int32 -> (B,) fp32."""
        return self.cross_entropy(self.class_logits(hidden, last), labels)  # (B,)


class Tensors(Protocol):
    """Logical tensors that can be read in parts."""

    def __contains__(self, name: object) -> bool: ...

    def read(self, name: str, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Return a box of a tensor."""


class WithFreshHead:
    """Trained weights with a head drawn from the seed: N(0, initializer_range), as transformers' `_init_weights`."""

    def __init__(self, weights: Tensors, model: ModelConfig, seed: int):
        self.weights, self.fresh = weights, initial_weights(model, seed)

    def read(self, name: str, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
        """Return a box of a tensor."""
        return (self.fresh if name == HEAD else self.weights).read(name, start, shape)
