"""Negative log-likelihoods of given tokens, one graph for every batch."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from gpt2x.model.gpt2 import GPT2
from gpt2x.tasks.language_modeling import TokenLosses


class Scorer(nn.Cell):
    """Scores batches of B rows of L tokens, without dropout.

    Fewer rows than B are padded up to B, so that a run over a split compiles one graph.

    Args:
        net: the model; its weights are read at each call.
        batch_size: B.
    """

    def __init__(self, net: GPT2, batch_size: int):
        super().__init__(auto_prefix=False)
        self.losses = TokenLosses(net)
        self.batch_size = batch_size

    def construct(self, ids):
        """ids (B, L) int32 -> (B, L - 1) fp32."""
        return self.losses(ids, None).reshape(ids.shape[0], ids.shape[1] - 1)

    def score(self, ids: np.ndarray) -> np.ndarray:
        """ids (R, L) int32 with R <= B -> nll of `ids[:, 1:]` in nats, (R, L - 1) float64."""
        missing = self.batch_size - len(ids)
        rows = np.pad(ids, ((0, missing), (0, 0))) if missing else ids
        return self(Tensor(rows)).asnumpy()[: len(ids)].astype(np.float64)


def perplexity(loss: float) -> float:
    """exp(loss); infinite where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(loss)))
