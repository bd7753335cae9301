"""The update of a run, as its layout has it."""

from __future__ import annotations

from gpt2x.config.layout import micro_batch_size, num_micro_batches
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.base import Optimizer
from gpt2x.parallel.gradient_reduction import GradientReduction, LocalParameter, ParameterAllGather
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Stage, StageLinks
from gpt2x.train.decision import Decision
from gpt2x.train.pipeline_step import PipelineStep
from gpt2x.train.step import GraphStep, TrainStep


def build_step(
    decision: Decision, net: GPT2, mesh: Mesh, local_parameters: list[LocalParameter], optimizer: Optimizer
) -> GraphStep:
    """Return the update of this process."""
    config, model = decision.config, decision.model
    trainer, parallel = config.trainer, config.parallel
    parameters = [local.parameter for local in local_parameters]
    has_dropout = decision.trainable.has_dropout()
    reduction = GradientReduction(local_parameters, mesh) if mesh.size > 1 else None
    is_sharded = any(local.rows is not None for local in local_parameters)
    all_gather = ParameterAllGather(local_parameters, mesh.shard) if mesh.shard and is_sharded else None
    if parallel.pipeline == 1:
        return TrainStep(
            decision.task.loss(config, net), parameters, optimizer, num_micro_batches(parallel, trainer),
            trainer.grad_clip, has_dropout, reduction, all_gather,
        )  # fmt: skip
    assert reduction is not None
    links = StageLinks(mesh, model, config.hardware, micro_batch_size(parallel, trainer), trainer.seq_len)
    return PipelineStep(
        Stage(net, mesh.coordinates), links, mesh.coordinates.stage, parallel.pipeline, parameters, optimizer,
        trainer.grad_clip, has_dropout, reduction, all_gather,
    )  # fmt: skip
