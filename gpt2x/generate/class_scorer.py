"""Class probabilities of texts: the inference of a classifier."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from gpt2x.data.rows.labelled import compact
from gpt2x.model.classifier import Classifier


class ClassScorer(nn.Cell):
    """Log-probabilities of the classes for batches of B texts, without dropout.

    Fewer rows than B are padded to B, and lengths to a power of two, so that few graphs serve a split.

    Args:
        net: the model; its weights are read at each call.
        batch_size: B.
        seq_len: maximum number of tokens of a text; the first ones are kept.
    """

    def __init__(self, net: Classifier, batch_size: int, seq_len: int):
        super().__init__(auto_prefix=False)
        self.net, self.batch_size, self.seq_len = net, batch_size, seq_len

    def construct(self, ids, last):
        """ids (B, T) int32, last (B, T) fp32: 1 at a text's last token -> logits (B, K) fp32."""
        return self.net.class_logits(self.net(ids, None), last)

    def score(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """ids and attention mask (R, L), padded on either side, R <= B -> (R, K) float64, in nats."""
        rows, lengths = compact(ids, mask, self.seq_len)
        missing = self.batch_size - len(rows)
        last = np.pad(last_tokens(lengths, rows.shape[1]), ((0, missing), (0, 0)))
        logits = self(Tensor(np.pad(rows, ((0, missing), (0, 0)))), Tensor(last)).asnumpy()[: len(ids)]
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def last_tokens(lengths: np.ndarray, width: int) -> np.ndarray:
    """lengths (B,) -> (B, width) fp32: 1 in column length - 1 of each row, 0 elsewhere."""
    return (np.arange(width) == lengths[:, None] - 1).astype(np.float32)
