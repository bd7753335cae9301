"""A run's model with its weights, and the loop around it."""

from __future__ import annotations

from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.pipeline import keep_stage
from gpt2x.parallel.tensor import build_net
from gpt2x.pretrained import read_weights
from gpt2x.tracking import Tracker
from gpt2x.train.decision import Decision
from gpt2x.train.initial_values import initial_values, loaded_weights
from gpt2x.train.trainer import Trainer


def build_trainer(decision: Decision, mesh: Mesh, tracker: Tracker, peak_tflops: float) -> Trainer:
    """Build this process' part of the model with its values, and the loop around it at the position where it begins."""
    model = decision.model
    net = build_net(model, decision.config.hardware, mesh)
    decision.trainable.attach(net, mesh)
    keep_stage(net, model, mesh.coordinates)
    if decision.base:
        read_weights(net, loaded_weights(decision), model, mesh.coordinates)
    trainer = Trainer(decision, net, mesh, tracker, peak_tflops)
    if decision.source.resumption:
        trainer.restore(decision.source.resumption.saved)
    else:
        trainer.load(initial_values(decision))
    return trainer
