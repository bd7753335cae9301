"""The validation loss while training: the mean over all tokens of a split's blocks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from gpt2x.config import ModelConfig, TrainConfig
from gpt2x.config.layout import micro_batch_size
from gpt2x.data.mindrecord import Split
from gpt2x.data.sampling import Batch, Inputs, batches
from gpt2x.evaluate.scoring import Scorer, StageScorer, perplexity
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import StageLinks
from gpt2x.parallel.replica_batches import ReplicaBatches

Targets = Callable[[Batch], Inputs]
"""batch -> what a scorer reads of it, and which targets count."""


def all_targets(batch: Batch) -> Inputs:
    """Count all targets of blocks that attention_mask covers."""
    return Inputs(batch["input_ids"], batch["attention_mask"][:, 1:].astype(np.float32))


def build_validation(
    config: TrainConfig, model: ModelConfig, split: Split | None, net: GPT2, mesh: Mesh, targets: Targets
) -> Validation:
    """Return a language model's validation by all processes, in any layout.

    Args:
        config: the configuration of `train.py`.
        model: the model with its vocabulary.
        split: the validation rows.
        net: the part of the model on this process.
        mesh: the processes.
        targets: which tokens of a batch count.
    """
    assert split is not None
    batch_size = min(micro_batch_size(config.parallel, config.trainer), split.num_blocks)
    scorer: StageScorer | None = None
    if config.parallel.pipeline > 1 or net.sharded_blocks is not None:
        links = StageLinks(mesh, model, config.hardware, batch_size, config.trainer.seq_len)
        scorer = StageScorer(net, links, batch_size, mesh)
    max_batches = config.trainer.max_eval_batches
    return Validation(net, split, batch_size, max_batches=max_batches, mesh=mesh, scorer=scorer, targets=targets)


class Validation:
    """A validation, created once and run many times; the first run compiles.

    Args:
        net: the model, with the weights that it has at each run.
        split: blocks of seq_len + 1 columns.
        batch_size: blocks per forward pass; does not change the result.
        max_batches: number of batches from the start of the split; None for all.
        mesh: the processes, whose replicas take turns at batches; None for one process.
        scorer: scores the blocks; None for a `Scorer` of `net`.
        targets: which tokens of a batch count.
    """

    def __init__(
        self,
        net: GPT2,
        split: Split,
        batch_size: int,
        max_batches: int | None = None,
        mesh: Mesh | None = None,
        scorer: Scorer | StageScorer | None = None,
        targets: Targets = all_targets,
    ):
        self.split, self.batch_size, self.max_batches, self.replicas = (
            split,
            batch_size,
            max_batches,
            ReplicaBatches(mesh),
        )
        self.scorer, self.targets = scorer or Scorer(net, batch_size), targets
        self.num_tokens = 0  # counted by the last run

    def run(self) -> dict[str, float]:
        """Return `val/loss` in nats per token (a mean over tokens, not over batches) and `val/ppl`, its exponential."""
        total, count = 0.0, 0
        blocks = batches(self.split, batch_size=self.batch_size, seed=0, epoch=0, shuffle=False, drop_last=False)
        for batch, is_local in self.replicas.rounds(islice(blocks, self.max_batches)):
            ids, counted, starts = self.targets(batch)
            nll = self.scorer.score(ids, starts)
            if is_local:
                total += nll[counted > 0].sum()
                count += int(counted.sum())
        total, count = self.replicas.total(total), int(self.replicas.total(count))
        self.num_tokens = count
        loss = float(total / count)
        return {"val/loss": loss, "val/ppl": perplexity(loss)}
