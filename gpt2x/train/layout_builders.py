"""The update and the validation of a run, as its layout has them."""

from __future__ import annotations

from gpt2x.config import ModelConfig, ParallelConfig
from gpt2x.config.layout import micro_batch_size, num_micro_batches
from gpt2x.evaluate.scoring import StageScorer
from gpt2x.evaluate.validation import Targets, Validation, all_targets
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.adamw import AdamW
from gpt2x.parallel.gradient_reduction import LocalParameter, Publication, Reduction
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Links, Stage
from gpt2x.train.decision import Decision
from gpt2x.train.pipeline_step import PipelineStep
from gpt2x.train.step import TrainStep


def build_step(
    decision: Decision, net: GPT2, mesh: Mesh, held: list[LocalParameter], optimizer: AdamW
) -> TrainStep | PipelineStep:
    """The update of this process."""
    config, model = decision.config, decision.model
    trainer, parallel = config.trainer, config.parallel
    parameters = [part.parameter for part in held]
    reduction = Reduction(held, mesh) if mesh.size > 1 else None
    is_shared = any(part.rows is not None for part in held)
    publication = Publication(held, mesh.shard) if mesh.shard and is_shared else None
    if parallel.pipeline == 1:
        return TrainStep(
            decision.task.loss(config, net), parameters, optimizer, num_micro_batches(parallel, trainer),
            trainer.grad_clip, decision.trainable.has_dropout(), reduction, publication,
        )  # fmt: skip
    assert reduction is not None
    links = Links(mesh, model, config.hardware, micro_batch_size(parallel, trainer), trainer.seq_len)
    return PipelineStep(
        Stage(net, mesh.coordinates), links, mesh.coordinates.stage, parallel.pipeline, parameters, optimizer,
        trainer.grad_clip, decision.trainable.has_dropout(), reduction, publication,
    )  # fmt: skip


def build_validation(decision: Decision, net: GPT2, mesh: Mesh, targets: Targets = all_targets) -> Validation:
    """A language model's validation loss by all processes."""
    config, split = decision.config, decision.data.val
    assert split is not None
    batch_size = min(micro_batch_size(config.parallel, config.trainer), split.num_blocks)
    scorer = None
    if config.parallel.pipeline > 1:
        links = Links(mesh, decision.model, config.hardware, batch_size, config.trainer.seq_len)
        scorer = StageScorer(Stage(net, mesh.coordinates), links, batch_size)
    max_batches = config.trainer.max_eval_batches
    return Validation(net, split, batch_size, max_batches=max_batches, mesh=mesh, scorer=scorer, targets=targets)


def samples_are_drawn(model: ModelConfig, parallel: ParallelConfig) -> bool:
    """Whether text can be sampled while training: by a language model's head, all layers, and a token at a time."""
    return not model.labels and parallel.pipeline == 1 and not parallel.sequence_parallel
