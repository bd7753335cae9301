"""`train.py` and `gpt2x train`: from a validated configuration to a finished run directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NoReturn

from gpt2x.checkpoint.store import list_checkpoints
from gpt2x.commands.configuration import save_config
from gpt2x.commands.report import redraw
from gpt2x.config import TrainConfig
from gpt2x.config.layout import world_size
from gpt2x.errors import UserError
from gpt2x.formats.mlflow import MODEL_FOLDER, export_checkpoint
from gpt2x.parallel.mesh import Mesh
from gpt2x.planner.memory import CPU_PROCESS_BYTES
from gpt2x.planner.roofline import plan_run
from gpt2x.reports import report_run
from gpt2x.runtime import heartbeat, interrupt, launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import measure_peak_tflops
from gpt2x.runtime.memory import peak_memory_gb
from gpt2x.runtime.role import Role
from gpt2x.tasks.base import Baseline
from gpt2x.tracking import (
    DataInput,
    NoTracker,
    RunInfo,
    Tracker,
    create_tracker,
    data_source,
    describe_run,
    jsonl,
    tracked,
)
from gpt2x.tracking.mlflow_sync import end_finished
from gpt2x.tracking.plots import plot_loss
from gpt2x.train import decision as decisions
from gpt2x.train.build import build_trainer
from gpt2x.train.decision import Decision
from gpt2x.train.lr_find import find_rate
from gpt2x.train.profiling import FOLDER
from gpt2x.train.resume import copy_history, set_aside_newer
from gpt2x.train.start_panel import show_panel
from gpt2x.train.trainer import Trainer

FILES_AT_END = ("loss.png", "samples.txt", "report.html")  # the tracker gets them


def decide(config: TrainConfig, run_dir: Path, role: Role) -> Decision:
    """Read what the configuration names and check that it fits together; the run directory stays untouched.

    Raises:
        UserError: for anything the user can put right.
    """
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    return decisions.decide(config, run_dir, role)


def open_run_dir(decision: Decision) -> None:
    """Write `config.yaml`, and the metrics of the run that is resumed; set its damaged checkpoints aside."""
    save_config(decision.resolved, launch.config_path(decision.config.launch.node_rank, decision.run_dir))
    if decision.source.resumption and decision.config.launch.node_rank == 0:
        set_aside_newer(decision.source.resumption)
        copy_history(decision.source.resumption)


def run(decision: Decision, mesh: Mesh) -> None:
    """Train, as one process of the layout."""
    config = decision.resolved
    outputs = Path(config.paths.outputs).expanduser()
    tracker = create_tracker(config.tracker, outputs) if mesh.is_main else NoTracker()
    peak_tflops = config.hardware.peak_tflops or measure_peak_tflops(config.hardware.precision)
    trainer = build_trainer(decision, mesh, tracker, peak_tflops)
    baseline = decision.task.baseline(decision)
    show_panel(decision, peak_tflops, baseline)
    if config.lr_find.num_steps is not None:
        find_rate(trainer)
        return
    with tracked(tracker, run_info(decision), FILES_AT_END), interrupt.deferred("the run saves and ends"):
        trainer.fit()
        if trainer.is_broken_off:
            break_off(trainer, tracker)
        peak_gb = float(mesh.gather(peak_memory_gb()).max())
        if mesh.is_main:
            finish(trainer, baseline, peak_gb)
            if config.tracker.log_model:
                log_model(trainer, tracker)
        trainer.saving.require_saved()
        require_loss(trainer)


def break_off(trainer: Trainer, tracker: Tracker) -> NoReturn:
    """Say how a run continues that a signal has ended, and tell the tracker why.

    Raises:
        Interrupted: the run is saved.
        UserError: it could not be.
    """
    trainer.saving.require_saved()
    interrupted, step = interrupt.Interrupted(trainer.signalled), trainer.state.step
    heartbeat.does("ending after a signal")
    tracker.set_tags({"interrupted": f"{interrupted}, after step {step}, {time.strftime('%Y-%m-%d %H:%M:%S')}"})
    console.notice(f"{interrupted}: step {step} of {trainer.total_steps} is saved; continue with resume=auto")
    console.notice(f"run directory: {trainer.run_dir}")
    raise interrupted


def run_info(decision: Decision) -> RunInfo:
    """Return the run as a tracker shows it."""
    config = decision.resolved
    return describe_run(
        config,
        decision.run_dir,
        experiment=config.task.name,
        name=f"{config.model.name}/{config.dataset.name}",
        data_hash=decision.data.fingerprint,
        tags={"profile": str(decision.run_dir / FOLDER)} if config.trainer.profile_steps else {},
        inputs=[
            DataInput(
                config.dataset.name,
                split.sha256,
                "train" if name == "train" else "validation",
                data_source(config.dataset, name),
                num_rows=split.num_blocks,
                num_tokens=split.num_tokens,
            )
            for name, split in decision.data.splits().items()
        ],
    )


def finish(trainer: Trainer, baseline: Baseline | None, peak_gb: float) -> None:
    """Draw the losses, write the report, print how the run ended; `peak_gb` is the memory of the fullest process."""
    run_dir, state = trainer.run_dir, trainer.state
    references = {baseline.name: baseline.loss} if baseline else {}
    title = f"{trainer.decision.model.name} on {trainer.config.dataset.name}"
    try:
        plot_loss(run_dir / "metrics.jsonl", run_dir / "loss.png", title, references, trainer.task.unit)
    except (OSError, ValueError) as error:  # a full disk does not undo a training
        console.warn(f"no loss.png of this run ({error}). Later: gpt2x report {run_dir}")
    report_run(run_dir)
    metric, patience = trainer.config.trainer.best_metric, trainer.config.trainer.early_stopping_patience
    if trainer.has_stopped_early:
        console.notice(f"stopped early at step {state.step}: {patience} evaluations in a row without a better {metric}")
    elif state.step < trainer.total_steps and not (trainer.has_reached_loss or trainer.is_pruned):
        console.notice(f"stopped after step {state.step} of {trainer.total_steps}; continue with resume=auto")
    if state.best_value is not None and (trainer.has_stopped_early or state.step == trainer.total_steps):
        against = f"; {baseline.comparison}" if baseline else ""
        console.notice(f"{trainer.task.summary(metric, state.best_value)} at step {state.best_step}{against}")
    console.notice(memory_line(trainer.config, peak_gb))
    console.notice(f"run directory: {run_dir}")


def end_again(run_dir: Path) -> None:
    """Do what a run has left undone that was killed after its last checkpoint: picture, report, the end in MLflow."""
    report, last_s = run_dir / "report.html", jsonl.last_time(run_dir / "metrics.jsonl")
    # the clock of the file system may differ a little
    is_drawn = last_s is None or (report.is_file() and report.stat().st_mtime >= last_s - 1)
    if not is_drawn:
        try:
            redraw(run_dir)
        except UserError as error:
            console.warn(str(error))
    end_finished(run_dir, FILES_AT_END)


def log_model(trainer: Trainer, tracker: Tracker) -> None:
    """Write the best checkpoint, else the newest, as an MLflow model, and hand it to the tracker."""
    run_dir, state = trainer.run_dir, trainer.state
    if not (trainer.has_stopped_early or state.step == trainer.total_steps):
        return  # the resumed run logs it
    best, output = run_dir / "checkpoints" / f"step_{state.best_step}", run_dir / MODEL_FOLDER
    complete = [best] if best.is_dir() else list_checkpoints(run_dir)
    if not complete:
        console.warn("no MLflow model: there is no checkpoint")
        return
    checkpoint = complete[-1]
    try:
        export_checkpoint(checkpoint, output, trainer.config.tracker.registered_model)
    except UserError as error:  # a full disk does not undo a training
        console.warn(f"no MLflow model: {error} Later: gpt2x convert --to mlflow --output DIR {checkpoint}")
        return
    tracker.log_artifact(output)
    console.notice(f"MLflow model of {checkpoint.name}: mlflow models serve --env-manager local -m {output}")


def require_loss(trainer: Trainer) -> None:
    """Check that the training loss has fallen as trainer.required_loss says, at the end of a run.

    Raises:
        UserError: it has not.
    """
    required, state = trainer.config.trainer.required_loss, trainer.state
    if required is None or trainer.last_loss is None:
        return
    fall = f"from {trainer.first_loss:.4f} to {trainer.last_loss:.4f} in {state.step} steps"
    if trainer.has_reached_loss:
        console.notice(f"train/loss fell {fall}: trainer.required_loss={required:g} is reached")
    elif state.step == trainer.total_steps:
        raise UserError(
            f"train/loss went {fall} and did not reach trainer.required_loss={required:g}. If it still falls, raise "
            "trainer.max_steps or optimizer.learning_rate; if it does not, look at the data, the mask and the loss."
        )


def memory_line(config: TrainConfig, peak_gb: float) -> str:
    """Return the peak of the fullest process beside that of the plan."""
    plan = plan_run(config)
    planned = plan.fullest.memory.total + (CPU_PROCESS_BYTES if config.hardware.is_cpu else 0)
    place = "on the device" if not config.hardware.is_cpu else "resident"
    processes = world_size(config.parallel)
    whose = f", the most of {processes} processes" if processes > 1 else ""
    return f"memory: {peak_gb:.2f} GB {place} at the peak{whose} (plan: {planned / 1e9:.2f} GB)"
