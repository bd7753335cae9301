"""Scores of texts: the inference of a classifier."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn

from gpt2x.data.rows.labelled import compact
from gpt2x.model.classifier import Classifier
from gpt2x.parallel.block_graphs import HiddenStates
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Stage


class ClassLogits(nn.Cell):
    """The classes' logits of a batch of texts, without dropout, from their ids or from what comes after the blocks."""

    def __init__(self, net: Classifier, has_blocks: bool):
        super().__init__(auto_prefix=False)
        self.net, self.stage = net, Stage(net, is_first=has_blocks, is_last=True, has_blocks=has_blocks)

    def construct(self, x, last):
        """x: ids (B, T) int32 or (B, T, D), last (B, T) fp32: 1 at a text's last token -> logits (B, K) fp32."""
        return self.net.class_logits(self.stage(x, None), last)


class ClassScorer:
    """Scores of the classes for batches of B texts, without dropout.

    Fewer rows than B are padded to B, and lengths to a power of two, so that few graphs serve a split; with blocks that
    replicas split, to `seq_len`.

    Args:
        net: the model; its weights are read at each call.
        batch_size: B.
        seq_len: maximum number of tokens of a text; the first ones are kept.
        mesh: the processes, if replicas split the blocks' weights.
        pad_id: trailing tokens of this id are not part of a text, as in transformers, which takes the last token that
            is not PAD; None to count all attended tokens.
    """

    def __init__(
        self, net: Classifier, batch_size: int, seq_len: int, mesh: Mesh | None = None, pad_id: int | None = None
    ):
        self.pad_id = pad_id
        self.batch_size, self.seq_len, self.num_labels = batch_size, seq_len, net.score.weight.shape[0]
        self.width = self.enter = self.blocks = None
        if net.sharded_blocks is not None:
            assert mesh is not None
            self.width, self.blocks = seq_len, HiddenStates(net, mesh)
            self.enter = Stage(net, is_first=True, is_last=False, has_blocks=False)
        self.leave = ClassLogits(net, has_blocks=self.blocks is None)

    def forward(self, x: Tensor, last: Tensor) -> Tensor:
        """As `ClassLogits.construct`, of ids."""
        if self.enter is not None and self.blocks is not None:
            x = self.blocks(self.enter(x, None), None)
        return self.leave(x, last)

    def logits(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """ids and attention mask (R, L), padded on either side, R <= B -> (R, K) float64."""
        rows, lengths = compact(ids, mask, self.seq_len, self.width)
        if self.pad_id is not None:
            lengths = without_trailing(rows, lengths, self.pad_id)
        missing = self.batch_size - len(rows)
        last = np.pad(last_tokens(lengths, rows.shape[1]), ((0, missing), (0, 0)))
        logits = self.forward(Tensor(np.pad(rows, ((0, missing), (0, 0)))), Tensor(last)).asnumpy()
        return logits[: len(ids)].astype(np.float64)

    def score(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """ids and attention mask (R, L), padded on either side, R <= B -> log-probabilities (R, K) float64, in nats."""
        return log_softmax(self.logits(ids, mask))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """logits (..., K) -> log-probabilities (..., K)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def without_trailing(rows: np.ndarray, lengths: np.ndarray, pad_id: int) -> np.ndarray:
    """rows (B, T), lengths (B,) -> the lengths without the PAD at each row's end; 1 if a row has nothing else."""
    is_text = (rows != pad_id) & (np.arange(rows.shape[1]) < lengths[:, None])
    return np.where(is_text.any(axis=1), rows.shape[1] - is_text[:, ::-1].argmax(axis=1), 1)


def last_tokens(lengths: np.ndarray, width: int) -> np.ndarray:
    """lengths (B,) -> (B, width) fp32: 1 in column length - 1 of each row, 0 elsewhere."""
    return (np.arange(width) == lengths[:, None] - 1).astype(np.float32)
