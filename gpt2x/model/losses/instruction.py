"""Responses to instructions, several examples a row."""

from __future__ import annotations

from mindspore import nn

from gpt2x.model.gpt2 import GPT2
from gpt2x.model.losses.language_modeling import WeightedLoss


class PackedLoss(nn.Cell):
    """`WeightedLoss` of rows of several examples, which do not see each other."""

    def __init__(self, net: GPT2):
        super().__init__(auto_prefix=False)
        self.loss = WeightedLoss(net)

    def construct(self, ids, weights, randomness):
        """ids (B, 2 T + 1) int32: T + 1 tokens of a row, and the column at which the example of each of the first T
        begins; weights (B, T) fp32 -> scalar fp32.
        """
        length = weights.shape[1]
        return self.loss(ids[:, : length + 1], weights, randomness, ids[:, length + 1 :])
