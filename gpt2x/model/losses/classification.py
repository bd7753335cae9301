"""Texts to classes: the head reads the last token of each text."""

from __future__ import annotations

from mindspore import nn, ops

from gpt2x.model.classifier import Classifier


class WeightedClassLoss(nn.Cell):
    """The sum of weighted losses of texts: weights that sum to one over a global batch make it a mean."""

    def __init__(self, net: Classifier):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, ids, weights, randomness):
        """ids (B, T + 1) int32: T tokens of a text and what follows them, its class; weights (B, T) fp32: a text's
        at its last token, 0 elsewhere; randomness as in `GPT2.construct` -> scalar fp32.
        """
        hidden = self.net(ids[:, :-1], randomness)  # (B, T, D)
        losses = self.net.class_loss(hidden, weights > 0, ids[:, -1])  # (B,)
        return ops.reduce_sum(losses * weights.sum(axis=1))
