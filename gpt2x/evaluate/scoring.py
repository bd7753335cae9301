"""Negative log-likelihoods of tokens, with one graph for all batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor, nn, ops

from gpt2x.model.gpt2 import GPT2
from gpt2x.model.losses.language_modeling import TokenLosses
from gpt2x.parallel.block_graphs import HiddenStates
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Stage, StageLinks, whole_stage

ROWS_AT_ONCE = 64  # rows of logits on the host, whose exponentials fit the cache


class Scorer(nn.Cell):
    """Scores batches of B rows of L tokens, without dropout.

    Fewer rows than B are padded to B, so that a run over a split compiles one graph.

    On the CPU the graph ends at the logits and numpy computes the softmax: MindSpore's CPU `exp` has an error of up to
    1e-6, always in the same direction, which changed the sixth digit of a published loss. Other devices compute all.

    Args:
        net: the model; its weights are read at each call.
        batch_size: B.
    """

    def __init__(self, net: GPT2, batch_size: int):
        super().__init__(auto_prefix=False)
        self.net, self.losses = net, TokenLosses(net)
        self.batch_size = batch_size
        self.is_exact = not net.backend.exp_is_exact

    def construct(self, ids, starts=None):
        """ids (B, L) int32, starts as in `GPT2.construct` -> logits (B * (L - 1), V) on the CPU, nll (B * (L - 1),)
        fp32 elsewhere.
        """
        if self.is_exact:
            return self.net.logits(self.net(ids[:, :-1], None, starts))
        return self.losses(ids, None, starts)

    def score(self, ids: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
        """ids (R, L) int32 with R <= B -> nll of `ids[:, 1:]` in nats, (R, L - 1) float64.

        Rows of several texts have `starts` (R, L - 1): the column at which the text of each token begins.
        """
        targets = ids[:, 1:]
        begins = None if starts is None else with_rows(starts, self.batch_size)
        return scores(self(with_rows(ids, self.batch_size), begins), targets, self.is_exact)


class GreedyScorer(Scorer):
    """A `Scorer` that also says which tokens greedy decoding would have chosen."""

    def construct(self, ids):
        """As `Scorer.construct`; nll comes with the most likely token of each position, (B * (L - 1),) int32."""
        logits = self.net.logits(self.net(ids[:, :-1], None))
        if self.is_exact:
            return logits
        return self.net.cross_entropy(logits, ids[:, 1:].reshape(-1)), ops.Argmax(axis=-1)(logits)

    def score_greedy(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `score`, and whether each of `ids[:, 1:]` is the most likely token there, (R, L - 1) bool."""
        targets = ids[:, 1:]
        outputs = self(with_rows(ids, self.batch_size))
        if self.is_exact:
            logits = outputs.asnumpy()[: targets.size]
            nll, likeliest = negative_log_likelihoods(logits, targets.reshape(-1)), logits.argmax(axis=-1)
        else:
            nll, likeliest = (values.asnumpy()[: targets.size] for values in outputs)
        return nll.reshape(targets.shape).astype(np.float64), likeliest.reshape(targets.shape) == targets


class StageScores(nn.Cell):
    """A stage, and what `Scorer.construct` returns if it is the last one."""

    def __init__(self, stage: Stage):
        super().__init__(auto_prefix=False)
        self.stage, self.is_exact = stage, not stage.net.backend.exp_is_exact

    def construct(self, x, ids, starts):
        """x: the stage's input, None on the first; ids and starts as in `Scorer.construct` -> the stage's output."""
        x = self.stage(ids[:, :-1] if x is None else x, None, starts)
        if not self.stage.is_last:
            return x
        if self.is_exact:
            return self.stage.net.logits(x)
        return self.stage.net.token_losses(x, ids[:, 1:].reshape(-1))


class BlockScores:
    """`StageScores` by a graph per block, for blocks whose weights replicas split."""

    def __init__(self, net: GPT2, mesh: Mesh):
        coordinates, self.blocks = mesh.coordinates, HiddenStates(net, mesh)
        self.enter = self.leave = None
        if coordinates.is_first_stage:
            self.enter = StageScores(Stage(net, is_first=True, is_last=False, has_blocks=False))
        if coordinates.is_last_stage:
            self.leave = StageScores(Stage(net, is_first=False, is_last=True, has_blocks=False))

    def __call__(self, x: Tensor | None, ids: Tensor, starts: Tensor | None) -> Tensor:
        """As `StageScores.construct`."""
        x = self.blocks(x if self.enter is None else self.enter(None, ids, starts), starts)
        return x if self.leave is None else self.leave(x, ids, starts)


class StageScorer:
    """`Scorer` of pipeline stages: every stage computes its part of each score, the last one has the result.

    Args:
        net: this process's part of the model.
        links: the messages between stages, for B sequences of L - 1 tokens.
        batch_size: B.
        mesh: the processes.
    """

    def __init__(self, net: GPT2, links: StageLinks, batch_size: int, mesh: Mesh):
        self.links, self.batch_size, self.is_last = links, batch_size, mesh.coordinates.is_last_stage
        self.is_exact = not net.backend.exp_is_exact
        is_split = net.sharded_blocks is not None
        self.compute = BlockScores(net, mesh) if is_split else StageScores(whole_stage(net, mesh.coordinates))

    def score(self, ids: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
        """Return `Scorer.score`; zeros on every stage except the last."""
        begins = None if starts is None else with_rows(starts, self.batch_size)
        output = self.compute(self.links.receive_forward(), with_rows(ids, self.batch_size), begins)
        targets = ids[:, 1:]
        if not self.is_last:
            self.links.send_forward(output)
            return np.zeros(targets.shape)
        return scores(output, targets, self.is_exact)


def scores(output: Tensor, targets: np.ndarray, is_exact: bool) -> np.ndarray:
    """Return negative log-likelihoods in nats, of the shape of `targets`, float64.

    Args:
        output: what a scorer's graph returns, with the rows that were added to the batch.
        targets: (R, L - 1) ids.
        is_exact: the output is logits, whose softmax numpy computes.
    """
    values = output.asnumpy()[: targets.size]
    if is_exact:
        values = negative_log_likelihoods(values, targets.reshape(-1))
    return values.reshape(targets.shape).astype(np.float64)


def with_rows(ids: np.ndarray, batch_size: int) -> Tensor:
    """ids (R, L) with R <= B -> (B, L), the missing rows filled with zeros."""
    return Tensor(np.pad(ids, ((0, batch_size - len(ids)), (0, 0))))


def padded(rows: Sequence[Sequence[int] | np.ndarray], length: int) -> np.ndarray:
    """R rows of at most L ids -> (R, L) int32, padded with zeros at the right, which a causal model never sees."""
    ids = np.zeros((len(rows), length), np.int32)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
    return ids


def negative_log_likelihoods(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """logits (R, V), targets (R,) -> nll (R,) in nats: fp32 exponentials, summed in fp64."""
    nll = np.empty(len(targets), np.float64)
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = logits[start : start + ROWS_AT_ONCE].astype(np.float32)
        largest = rows.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(rows, targets[start : start + ROWS_AT_ONCE, None], axis=1) - largest
        total = np.exp(rows - largest).sum(axis=1, dtype=np.float64)
        nll[start : start + ROWS_AT_ONCE] = np.log(total) - chosen[:, 0]
    return nll
