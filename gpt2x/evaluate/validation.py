"""The validation loss while training: the mean over all tokens of a split's blocks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import micro_batch_size
from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import Batch, Inputs, evaluation_batches, evaluation_rows
from gpt2x.evaluate.scoring import Scorer, StageScorer
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import StageLinks
from gpt2x.parallel.replica_batches import ReplicaBatches, exact_sum
from gpt2x.tracking.units import bits_per_byte, perplexity

Targets = Callable[[Batch], Inputs]
"""batch -> what a scorer reads of it, and which targets count."""


def all_targets(batch: Batch) -> Inputs:
    """Count all targets of blocks that attention_mask covers."""
    return Inputs(batch["input_ids"], batch["attention_mask"][:, 1:].astype(np.float32))


def build_validation(
    config: TrainConfig,
    model: ModelConfig,
    split: Split | None,
    net: GPT2,
    mesh: Mesh,
    targets: Targets,
    token_bytes: np.ndarray | None = None,
) -> Validation:
    """Return a language model's validation by all processes, in any layout.

    Args:
        config: the configuration of `train.py`.
        model: the model with its vocabulary.
        split: the validation rows.
        net: the part of the model on this process.
        mesh: the processes.
        targets: which tokens of a batch count.
        token_bytes: what `Tokenizer.token_bytes` returns, for `val/bits_per_byte`; None: without it.
    """
    assert split is not None
    max_rows = config.trainer.max_eval_rows
    num_rows = len(evaluation_rows(split.num_blocks, max_rows))
    batch_size = min(micro_batch_size(config.parallel, config.trainer), num_rows)
    scorer: StageScorer | None = None
    if config.parallel.pipeline > 1 or net.sharded_blocks is not None:
        links = StageLinks(mesh, model, config.hardware, batch_size, config.trainer.seq_len)
        scorer = StageScorer(net, links, batch_size, mesh)
    return Validation(net, split, batch_size, max_rows, mesh, scorer, targets, token_bytes)


class Validation:
    """A validation, created once and run many times; the first run compiles.

    Args:
        net: the model, with the weights that it has at each run.
        split: blocks of seq_len + 1 columns.
        batch_size: blocks per forward pass; does not change the result.
        max_rows: how many blocks, see `gpt2x.data.sampling.evaluation_rows`; None for all.
        mesh: the processes, whose replicas take turns at batches; None for one process.
        scorer: scores the blocks; None for a `Scorer` of `net`.
        targets: which tokens of a batch count.
        token_bytes: bytes of each id's text, for `val/bits_per_byte`; None: without it.
    """

    def __init__(
        self,
        net: GPT2,
        split: Split,
        batch_size: int,
        max_rows: int | None = None,
        mesh: Mesh | None = None,
        scorer: Scorer | StageScorer | None = None,
        targets: Targets = all_targets,
        token_bytes: np.ndarray | None = None,
    ):
        self.split, self.batch_size, self.max_rows = split, batch_size, max_rows
        self.replicas = ReplicaBatches(mesh)
        self.scorer, self.targets, self.token_bytes = scorer or Scorer(net, batch_size), targets, token_bytes
        self.num_tokens = 0  # counted by the last run

    def run(self, before_round: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Return `val/loss` in nats per token (a mean over tokens, not over batches) and `val/ppl`, its exponential.

        With `token_bytes`, `val/bits_per_byte` is the same sum in bits by the bytes of the tokens' text.

        Losses are added row by row and then over rows, both without rounding on the way, so that neither batches nor
        replicas change the sum. `before_round` is called before each batch.
        """
        nll_of_rows: list[float] = []
        count = num_bytes = 0
        blocks = evaluation_batches(self.split, self.batch_size, self.max_rows)
        for batch, is_local in self.replicas.rounds(blocks):
            before_round()
            ids, counted, starts = self.targets(batch)
            scores = self.scorer.score(ids, starts)
            if is_local:
                nll_of_rows += row_sums(scores, counted)
                count += int(counted.sum())
                if self.token_bytes is not None:
                    num_bytes += int(self.token_bytes[ids[:, 1:][counted > 0]].sum())
        self.num_tokens = int(self.replicas.total(count))
        nll = self.replicas.total(nll_of_rows)
        loss = nll / self.num_tokens
        values = {"val/loss": loss, "val/ppl": perplexity(loss)}
        if self.token_bytes is not None:
            values["val/bits_per_byte"] = bits_per_byte(nll, int(self.replicas.total(num_bytes)))
        return values


def row_sums(nll: np.ndarray, counted: np.ndarray) -> list[float]:
    """Return the sum of each row's losses that count, the same for any width of the rows.

    nll: (R, T) float64. counted: (R, T), 1 where a loss counts.
    """
    return [exact_sum(values[counts > 0]) for values, counts in zip(nll, counted, strict=True)]
