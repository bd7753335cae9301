"""The loss of next-token prediction, for pretraining and fine-tuning."""

from __future__ import annotations

from mindspore import nn

from gpt2x.model.gpt2 import GPT2


class TokenLosses(nn.Cell):
    """The negative log-likelihood of each target in nats; EOS is attended and counted like any other token."""

    def __init__(self, net: GPT2):
        super().__init__(auto_prefix=False)
        self.net = net

    def construct(self, ids, randomness, starts=None):
        """ids (B, T + 1) int32; randomness and starts as in `GPT2.construct` -> (B * T,) fp32."""
        hidden = self.net(ids[:, :-1], randomness, starts)  # (B, T, D)
        return self.net.token_losses(hidden, ids[:, 1:].reshape(-1))


class WeightedLoss(nn.Cell):
    """The weighted sum of token losses."""

    def __init__(self, net: GPT2):
        super().__init__(auto_prefix=False)
        self.net, self.is_head_trained = net, net.is_head_trained()

    def construct(self, ids, weights, randomness, starts=None):
        """ids (B, T + 1) int32, weights (B, T) fp32; randomness and starts as in `GPT2.construct` -> scalar fp32."""
        return self.of_hidden(self.net(ids[:, :-1], randomness, starts), ids, weights)

    def of_hidden(self, hidden, ids, weights):
        """Return the same, given the model's hidden states (B, T, D)."""
        return self.net.weighted_loss(hidden, ids[:, 1:].reshape(-1), weights.reshape(-1), self.is_head_trained)
