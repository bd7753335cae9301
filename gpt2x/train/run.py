"""`train.py`: from a validated configuration to a finished run directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.config import TrainConfig
from gpt2x.config.files import save_config
from gpt2x.parallel.agreement import from_main
from gpt2x.parallel.mesh import Mesh
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import measure_peak_tflops, set_up_device
from gpt2x.runtime.hydra_job import output_dir, remove_empty
from gpt2x.tasks.base import Baseline
from gpt2x.tracking import NoTracker, RunInfo, Tracker, create_tracker, run_tags
from gpt2x.train.decision import Decision, decide
from gpt2x.train.resume import copy_history
from gpt2x.train.start_panel import show_panel

if TYPE_CHECKING:
    from gpt2x.train.trainer import Trainer


def run(config: TrainConfig) -> None:
    """Train as `config` says, as one process of its layout.

    Raises:
        UserError: for anything the user can put right, before the run directory holds anything.
    """
    outputs = Path(config.paths.outputs).expanduser()
    tracker = NoTracker() if launch.worker_rank() else create_tracker(config.tracker, outputs)
    set_up_device(config.hardware)
    mesh = Mesh(config.parallel, config.hardware.device_target)
    decision = decide_together(config, mesh)
    if launch.is_deciding():
        open_run_dir(decision)
    peak_tflops = config.hardware.peak_tflops or measure_peak_tflops()
    trainer = build_trainer(decision, mesh, tracker, peak_tflops)
    baseline = decision.task.baseline(decision)
    show_panel(decision, peak_tflops, baseline)
    with tracked(decision, tracker):
        trainer.fit()
        if mesh.is_main:
            finish(trainer, baseline)


def prepare_launch(config: TrainConfig) -> Path:
    """Decide all that the processes of a run would decide, once: a run directory, with their configuration in it.

    Raises:
        UserError: for anything the user can put right, before the run directory holds anything.
    """
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    decision = decide(config, output_dir())
    open_run_dir(decision)
    return decision.run_dir


def decide_together(config: TrainConfig, mesh: Mesh) -> Decision:
    """`decide`, with one run directory and checkpoint for all processes: what one launcher told, or rank 0's."""
    if mesh.size == 1 or (launch.is_launched() and config.launch.num_nodes == 1):
        return decide(config, output_dir())
    decision = decide(config, output_dir()) if mesh.is_main else None
    told = json.dumps([str(decision.run_dir.absolute()), decision.resolved.resume]) if decision else ""
    run_dir, resume = json.loads(from_main(mesh, told))
    return decision or decide(replace(config, resume=resume), Path(run_dir))


def open_run_dir(decision: Decision) -> None:
    """Begin the run directory: `config.yaml`, and the metrics of the run that is gone on from."""
    made_by_hydra = output_dir()
    if decision.run_dir != made_by_hydra:
        remove_empty(made_by_hydra)
    save_config(decision.resolved, launch.config_path(decision.config, decision.run_dir))
    if decision.source.resumption and decision.config.launch.node_rank == 0:
        copy_history(decision.source.resumption)


def build_trainer(decision: Decision, mesh: Mesh, tracker: Tracker, peak_tflops: float) -> Trainer:
    """Build this process' part of the model with its values, and the loop around it at the position where it begins."""
    from gpt2x.parallel.pipeline import keep_stage
    from gpt2x.parallel.tensor import build_net
    from gpt2x.pretrained import read_weights
    from gpt2x.train.initial_values import initial_values, loaded_weights
    from gpt2x.train.trainer import Trainer

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


@contextlib.contextmanager
def tracked(decision: Decision, tracker: Tracker) -> Iterator[None]:
    """Open the tracker's run and close it with the status that fits."""
    config = decision.resolved
    tracker.start(
        RunInfo(
            experiment=config.tracker.experiment or config.task.name,
            run_name=config.tracker.run_name or f"{config.model.name}/{config.dataset.name}",
            run_dir=decision.run_dir,
            params=asdict(config),
            tags=run_tags(
                layout=config.parallel.name, hardware=config.hardware.name, data_hash=decision.data.fingerprint
            ),
        )
    )
    status = "FAILED"
    try:
        tracker.log_artifact(decision.run_dir / "config.yaml")
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        console.notice("interrupted; resume=auto goes on from the last checkpoint, if there is one")
        raise
    finally:
        for name in ("loss.png", "samples.txt"):
            if (decision.run_dir / name).is_file():
                tracker.log_artifact(decision.run_dir / name)
        tracker.finish(status)


def finish(trainer: Trainer, baseline: Baseline | None) -> None:
    """The loss curve, and the last words on the terminal."""
    from gpt2x.tracking.plots import plot_loss

    run_dir, state = trainer.run_dir, trainer.state
    references = {baseline.name: baseline.loss} if baseline else {}
    title = f"{trainer.model.name} on {trainer.config.dataset.name}"
    plot_loss(run_dir / "metrics.jsonl", run_dir / "loss.png", title, references, trainer.task.unit)
    metric, patience = trainer.config.trainer.best_metric, trainer.config.trainer.early_stopping_patience
    if trainer.has_stopped_early:
        console.notice(f"stopped early at step {state.step}: {patience} evaluations in a row without a better {metric}")
    elif state.step < trainer.total_steps:
        console.notice(f"stopped after step {state.step} of {trainer.total_steps}; go on with resume=auto")
    if state.best_value is not None and (trainer.has_stopped_early or state.step == trainer.total_steps):
        against = f"; {baseline.comparison}" if baseline else ""
        console.notice(f"{trainer.task.summary(metric, state.best_value)} at step {state.best_step}{against}")
    console.notice(f"run directory: {run_dir}")
