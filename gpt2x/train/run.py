"""`train.py`: from a validated configuration to a finished run directory."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2x.cli import output_dir, remove_empty, save_config
from gpt2x.config import TrainConfig
from gpt2x.model.stats import HEAD
from gpt2x.parallel.agreement import from_main
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.placement import Readable
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import measure_peak_tflops, set_up_device
from gpt2x.tracking import NoTracker, RunInfo, Tracker, create_tracker, run_tags
from gpt2x.train.report import show_panel
from gpt2x.train.resume import copy_history
from gpt2x.train.start import Start, decide
from gpt2x.train.tasks import Baseline

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
    start = decide_together(config, mesh)
    if launch.is_deciding():
        open_run_dir(start)
    peak_tflops = config.hardware.peak_tflops or measure_peak_tflops()
    trainer = build_trainer(start, mesh, tracker, peak_tflops)
    baseline = start.task.baseline(start)
    show_panel(start, peak_tflops, baseline)
    with tracked(start, tracker):
        trainer.fit()
        if mesh.is_main:
            finish(trainer, baseline)


def prepare_launch(config: TrainConfig) -> Path:
    """Decide all that the processes of a run would decide, once: a run directory, with their configuration in it.

    Raises:
        UserError: for anything the user can put right, before the run directory holds anything.
    """
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    start = decide(config, output_dir())
    open_run_dir(start)
    return start.run_dir


def decide_together(config: TrainConfig, mesh: Mesh) -> Start:
    """`decide`, with one run directory and checkpoint for all processes: what one launcher told, or rank 0's."""
    if mesh.size == 1 or (launch.is_launched() and config.launch.num_nodes == 1):
        return decide(config, output_dir())
    start = decide(config, output_dir()) if mesh.is_main else None
    told = json.dumps([str(start.run_dir.absolute()), start.resolved.resume]) if start else ""
    run_dir, resume = json.loads(from_main(mesh, told))
    return start or decide(replace(config, resume=resume), Path(run_dir))


def open_run_dir(start: Start) -> None:
    """Begin the run directory: `config.yaml`, and the metrics of the run that is gone on from."""
    made_by_hydra = output_dir()
    if start.run_dir != made_by_hydra:
        remove_empty(made_by_hydra)
    save_config(start.resolved, launch.config_path(start.config, start.run_dir))
    if start.resumption and start.config.launch.node_rank == 0:
        copy_history(start.resumption)


def build_trainer(start: Start, mesh: Mesh, tracker: Tracker, peak_tflops: float) -> Trainer:
    """This process' part of the model with its weights, and the loop around it at the position where it goes on."""
    from gpt2x.lora.cells import add_adapters
    from gpt2x.model.gpt2 import initial_weights
    from gpt2x.parallel.pipeline import keep_stage
    from gpt2x.parallel.tensor import build_net
    from gpt2x.pretrained import read_weights
    from gpt2x.train.trainer import Trainer

    model, lora = start.model, start.config.lora
    net = build_net(model, start.config.hardware, mesh)
    if lora.rank is not None:
        add_adapters(net, model, lora, mesh)
    keep_stage(net, model, mesh.place)
    if lora.rank is not None:
        read_weights(net, with_head(start), model, mesh.place)
    trainer = Trainer(start, net, mesh, tracker, peak_tflops)
    if start.resumption:
        trainer.restore(start.resumption.saved)
    elif lora.rank is not None:
        trainer.load(first_adapter(start))
    elif start.source:
        trainer.load(with_head(start))
    else:
        trainer.load(initial_weights(model, start.config.seed))
    return trainer


def first_adapter(start: Start) -> Readable:
    """What lora= trains, as it begins: the adapter that training goes on from, or a fresh one; a classifier's head."""
    from gpt2x.lora.cells import initial_factors
    from gpt2x.parallel.placement import Whole

    model, adapter = start.model, start.adapter
    values = adapter.factors() if adapter else initial_factors(start.config.lora, model, start.config.seed)
    if model.labels:
        shape = (len(model.labels), model.hidden_size)
        is_trained = adapter is not None and adapter.head is not None
        values[HEAD] = adapter.head if is_trained else with_head(start).read(HEAD, (0, 0), shape)
    return Whole(values)


def with_head(start: Start) -> Readable:
    """The loaded weights, with rows for added tokens, and a fresh head where they have none for these labels."""
    from gpt2x.convert.vocabulary import grown
    from gpt2x.model.classifier import WithFreshHead

    assert start.source is not None
    assert start.model.vocab_size is not None
    weights = grown(start.source.weights(), start.model.vocab_size)
    if not start.model.labels or start.model.labels == start.source.model.labels:
        return weights
    return WithFreshHead(weights, start.model, start.config.seed)


@contextlib.contextmanager
def tracked(start: Start, tracker: Tracker) -> Iterator[None]:
    """Open the tracker's run and close it with the status that fits."""
    config = start.resolved
    tracker.start(
        RunInfo(
            experiment=config.tracker.experiment or config.task.name,
            run_name=config.tracker.run_name or f"{config.model.name}/{config.dataset.name}",
            run_dir=start.run_dir,
            params=asdict(config),
            tags=run_tags(layout=config.parallel.name, hardware=config.hardware.name, data_hash=start.data.fingerprint),
        )
    )
    status = "FAILED"
    try:
        tracker.log_artifact(start.run_dir / "config.yaml")
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        console.notice("interrupted; resume=auto goes on from the last checkpoint, if there is one")
        raise
    finally:
        for name in ("loss.png", "samples.txt"):
            if (start.run_dir / name).is_file():
                tracker.log_artifact(start.run_dir / name)
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
