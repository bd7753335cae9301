"""Build what looks inside of a run: statistics of layers, and the search for what is not finite."""

from __future__ import annotations

from gpt2x.config.rules_inspection import OF_ACTIVATIONS, has_activations
from gpt2x.model.gpt2 import GPT2
from gpt2x.parallel.full_sharding import Blocks
from gpt2x.parallel.gradient_reduction import LocalParameter
from gpt2x.parallel.mesh import Mesh
from gpt2x.train.decision import Decision
from gpt2x.train.nonfinite import Forward, NonFinite
from gpt2x.train.rank_tensors import RankTensors
from gpt2x.train.statistics.activations import ActivationMeter
from gpt2x.train.statistics.gradients import GradientMeter
from gpt2x.train.statistics.measure import Statistics
from gpt2x.train.statistics.tensors import stored_names, trained_names
from gpt2x.train.step import GraphStep


def build_statistics(
    decision: Decision,
    net: GPT2,
    mesh: Mesh,
    trained: list[LocalParameter],
    tensors: RankTensors,
    train_step: GraphStep,
    blocks: Blocks | None,
) -> Statistics | None:
    """Return what measures updates; None without trainer.stats_every_steps."""
    options = decision.config.trainer
    if options.stats_every_steps is None:
        return None
    gradients = GradientMeter(train_step, trained, mesh, blocks) if "gradients" in options.stats else None
    looked_at = [kind for kind in OF_ACTIVATIONS if kind in options.stats]
    activations = ActivationMeter(net, decision.model.num_heads, mesh, looked_at) if looked_at else None
    names = trained_names(decision.trainable, decision.config.parallel)
    return Statistics(options, names, tensors, mesh, gradients, activations)


def build_nonfinite(
    decision: Decision,
    net: GPT2,
    mesh: Mesh,
    trained: list[LocalParameter],
    tensors: RankTensors,
    train_step: GraphStep,
    blocks: Blocks | None,
) -> NonFinite | None:
    """Return what finds values that are not finite; None without trainer.stop_on_nonfinite."""
    if not decision.config.trainer.stop_on_nonfinite:
        return None
    config, forward = decision.config, None
    if has_activations(config.parallel):
        forward = Forward(net, decision.trainable.has_dropout(), config.trainer.seq_len)
    choice = decision.trainable, config.parallel
    gradients = GradientMeter(train_step, trained, mesh, blocks)
    return NonFinite(stored_names(*choice), trained_names(*choice), tensors, mesh, gradients, forward)
