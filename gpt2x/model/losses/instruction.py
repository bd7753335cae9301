"""The loss of responses to instructions, with several examples per row."""

from __future__ import annotations

from mindspore import nn

from gpt2x.model.gpt2 import GPT2
from gpt2x.model.losses.language_modeling import WeightedLoss


class PackedLoss(nn.Cell):
    """`WeightedLoss` of rows of several examples, which do not attend to each other."""

    def __init__(self, net: GPT2):
        super().__init__(auto_prefix=False)
        self.loss = WeightedLoss(net)

    def construct(self, ids, weights, randomness):
        """ids (B, 2 T + 1) int32, weights (B, T) fp32, randomness as in `GPT2.construct` -> scalar fp32.

        A row of ids has T + 1 tokens, followed by the column at which the example of each of the first T begins.
        """
        length = weights.shape[1]
        return self.loss(ids[:, : length + 1], weights, randomness, ids[:, length + 1 :])
