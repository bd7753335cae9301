"""Build what one process of a run needs: its part of the model with values, its update, and the loop around it."""

from __future__ import annotations

from gpt2x.config.layout import micro_batch_size, num_micro_batches
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.base import Optimizer
from gpt2x.optim.layer_decay import layer_rate_factors
from gpt2x.optim.registry import create_optimizer
from gpt2x.parallel.gradient_reduction import GradientReduction, LocalParameter, ParameterAllGather, local_parameters
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import Stage, StageLinks, keep_stage
from gpt2x.parallel.tensor import build_net
from gpt2x.pretrained import read_weights
from gpt2x.tracking import Tracker
from gpt2x.train.decision import Decision
from gpt2x.train.initial_values import initial_values, loaded_weights
from gpt2x.train.pipeline_step import PipelineStep
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.step import GraphStep, TrainStep
from gpt2x.train.trainer import Trainer


def build_trainer(decision: Decision, mesh: Mesh, tracker: Tracker, peak_tflops: float) -> Trainer:
    """Build the loop of this process, with the values and at the position where the run begins or continues.

    Args:
        decision: everything that is known before.
        mesh: the processes.
        tracker: mirrors the metrics.
        peak_tflops: of one device at the precision used, for MFU.
    """
    config, model, trainable = decision.config, decision.model, decision.trainable
    net = build_net(model, config.hardware, mesh)
    trainable.attach(net, mesh)
    keep_stage(net, model, mesh.coordinates)
    if decision.base:
        read_weights(net, loaded_weights(decision), model, mesh.coordinates)
    trained = local_parameters(net, model, mesh, trainable.trained_placements(mesh.coordinates))
    rate_factors = layer_rate_factors(config.optimizer, [local.name for local in trained], model.num_layers)
    optimizer = create_optimizer(config.optimizer, [local.trained for local in trained], net.backend, rate_factors)
    tensors = RankTensors(net, trainable, trained, optimizer, mesh)
    train_step = build_step(decision, net, mesh, trained, optimizer)
    trainer = Trainer(decision, net, mesh, optimizer, tensors, train_step, tracker, peak_tflops)
    if decision.source.resumption:
        trainer.restore(decision.source.resumption.saved)
    else:
        trainer.load(initial_values(decision))
    return trainer


def build_step(
    decision: Decision, net: GPT2, mesh: Mesh, trained: list[LocalParameter], optimizer: Optimizer
) -> GraphStep:
    """Build the update of this process: of all layers, or of its pipeline stage.

    Args:
        decision: the configuration, the task and what is trained.
        net: this process's part of the model.
        mesh: the processes.
        trained: the trained parameters of this process, in the order of `optimizer`.
        optimizer: updates them in place.
    """
    config, parallel, trainer = decision.config, decision.config.parallel, decision.config.trainer
    parameters = [local.parameter for local in trained]
    has_dropout = decision.trainable.has_dropout()
    reduction = GradientReduction(trained, mesh) if mesh.size > 1 else None
    is_sharded = any(local.rows is not None for local in trained)
    all_gather = ParameterAllGather(trained, mesh.shard) if mesh.shard and is_sharded else None
    if parallel.pipeline == 1:
        return TrainStep(
            decision.task.loss(config, net), parameters, optimizer, num_micro_batches(parallel, trainer),
            trainer.grad_clip, has_dropout, reduction, all_gather,
        )  # fmt: skip
    assert reduction is not None
    links = StageLinks(mesh, decision.model, config.hardware, micro_batch_size(parallel, trainer), trainer.seq_len)
    return PipelineStep(
        Stage(net, mesh.coordinates), links, mesh.coordinates.stage, parallel.pipeline, parameters, optimizer,
        trainer.grad_clip, has_dropout, reduction, all_gather,
    )  # fmt: skip
