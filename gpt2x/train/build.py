"""Build what one process of a run needs: its part of the model with values, its update, and the loop around it."""

from __future__ import annotations

import mindspore as ms

from gpt2x.config import ModelConfig
from gpt2x.config.layout import micro_batch_size, num_micro_batches
from gpt2x.model.gpt2 import GPT2
from gpt2x.optim.base import Optimizer
from gpt2x.optim.layer_decay import layer_rate_factors
from gpt2x.optim.registry import create_optimizer
from gpt2x.parallel.full_sharding import Blocks, shard_blocks
from gpt2x.parallel.gradient_reduction import GradientReduction, LocalParameter, ParameterAllGather, local_parameters
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import StageLinks, keep_stage, whole_stage
from gpt2x.parallel.placement import placements
from gpt2x.parallel.tensor import build_net
from gpt2x.pretrained import read_weights
from gpt2x.tracking import Tracker
from gpt2x.train.block_step import StageOfBlocks
from gpt2x.train.decision import Decision
from gpt2x.train.initial_values import initial_values, loaded_weights
from gpt2x.train.inspection import build_nonfinite, build_statistics
from gpt2x.train.pipeline_step import PipelineStep, StageProgram, WholeStage
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.step import GraphStep, TrainStep
from gpt2x.train.trainer import Trainer
from gpt2x.train.update import GradientSums
from gpt2x.trainable import Trainable

REDUCE_DTYPES = {"compute": None, "fp32": ms.float32}


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
    trained, blocks = trained_parameters(net, model, mesh, trainable)
    rate_factors = layer_rate_factors(config.optimizer, [local.name for local in trained], model.num_layers)
    stacks = blocks.trained if blocks else ()
    parameters = [*(local.trained for local in trained), *(stack.parameter for stack in stacks)]
    optimizer = create_optimizer(config.optimizer, parameters, net.backend, rate_factors)
    tensors = RankTensors(net, trainable, trained, optimizer, mesh, blocks)
    if decision.base:
        base = loaded_weights(decision)
        read_weights(net, base, model, mesh.coordinates)
        tensors.load_frozen(base)
    train_step = build_step(decision, net, mesh, trained, optimizer, blocks)
    inside = decision, net, mesh, trained, tensors, train_step, blocks
    trainer = Trainer(
        decision, net, mesh, optimizer, tensors, train_step, tracker, peak_tflops,
        build_statistics(*inside), build_nonfinite(*inside),
    )  # fmt: skip
    if decision.source.resumption:
        trainer.restore(decision.source.resumption.saved)
    else:
        trainer.load(initial_values(decision))
    return trainer


def trained_parameters(
    net: GPT2, model: ModelConfig, mesh: Mesh, trainable: Trainable
) -> tuple[list[LocalParameter], Blocks | None]:
    """Return the trained parameters of this process, and its blocks if their weights are split.

    With split weights, the first are those outside of the blocks.
    """
    trained = trainable.trained_placements(mesh.coordinates)
    blocks = None
    if mesh.coordinates.parallel.splits_weights:
        tensors = placements(model, mesh.coordinates) | trainable.stored_placements(mesh.coordinates)
        blocks = shard_blocks(net, model, mesh, tensors, set(trained))
        trained = {name: part for name, part in trained.items() if not name.startswith("h.")}
    return local_parameters(net, model, mesh, trained), blocks


def build_step(
    decision: Decision,
    net: GPT2,
    mesh: Mesh,
    trained: list[LocalParameter],
    optimizer: Optimizer,
    blocks: Blocks | None = None,
) -> GraphStep:
    """Build the update of this process: of all layers at once, of its pipeline stage, or block by block.

    Args:
        decision: the configuration, the task and what is trained.
        net: this process's part of the model.
        mesh: the processes.
        trained: the trained parameters of this process, in the order of `optimizer`; without those of `blocks`.
        optimizer: updates them in place.
        blocks: those of this process if their weights are split.
    """
    config, parallel, trainer = decision.config, decision.config.parallel, decision.config.trainer
    parameters = [local.parameter for local in trained]
    has_dropout = decision.trainable.has_dropout()
    counted = tuple(stack.is_owned for stack in blocks.trained) if blocks else ()
    reduction = GradientReduction(trained, mesh, net.backend.square_sum(), counted) if mesh.size > 1 else None
    is_sharded = any(local.rows is not None for local in trained)
    all_gather = ParameterAllGather(trained, mesh.shard) if mesh.shard and is_sharded else None
    loss = decision.task.loss(config, net) if mesh.coordinates.is_last_stage else None
    if parallel.pipeline == 1 and blocks is None:
        assert loss is not None
        return TrainStep(
            loss, parameters, optimizer, num_micro_batches(parallel, trainer),
            trainer.grad_clip, has_dropout, reduction, all_gather, parallel.splits_gradients, trainer.seq_len,
        )  # fmt: skip
    assert reduction is not None
    links = StageLinks(mesh, decision.model, config.hardware, micro_batch_size(parallel, trainer), trainer.seq_len)
    program: StageProgram
    if blocks:
        sums = GradientSums.of([*parameters, *(stack.parameter for stack in blocks.trained)])
        program = StageOfBlocks(blocks, loss, trained, sums, has_dropout, mesh, REDUCE_DTYPES[parallel.reduce_dtype])
    else:
        sums = GradientSums.of(parameters)
        program = WholeStage(whole_stage(net, mesh.coordinates), loss, parameters, has_dropout, sums)
    return PipelineStep(
        program, links, mesh.coordinates.stage, parallel.pipeline, sums, optimizer,
        trainer.grad_clip, reduction, all_gather,
    )  # fmt: skip
