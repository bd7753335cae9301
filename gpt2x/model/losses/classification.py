"""The loss of a classifier, whose head reads the last token of each text."""

from __future__ import annotations

from mindspore import nn, ops

from gpt2x.model.classifier import Classifier


class WeightedClassLoss(nn.Cell):
    """The weighted sum of the losses of texts."""

    def __init__(self, net: Classifier):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, ids, weights, randomness, starts=None):
        """ids (B, T + 1) int32, weights (B, T) fp32; randomness and starts as in `GPT2.construct` -> scalar fp32.

        A row of ids has T tokens of a text, followed by its class. A row of weights has the text's weight at its last
        token, 0 elsewhere.
        """
        return self.of_hidden(self.net(ids[:, :-1], randomness, starts), ids, weights)

    def of_hidden(self, hidden, ids, weights):
        """Return the same, given the model's hidden states (B, T, D)."""
        losses = self.net.class_loss(hidden, weights > 0, ids[:, -1])  # (B,)
        return ops.reduce_sum(losses * weights.sum(axis=1))
