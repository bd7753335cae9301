"""`evaluate.py`: one flow for every kind of model; what is measured is a `Measurement` of the model's task."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from gpt2x import __version__
from gpt2x.config import EvaluateConfig
from gpt2x.config.files import save_config
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import save_scores
from gpt2x.evaluate.measurement import Measurement
from gpt2x.evaluate.results import (
    RESULTS,
    SCORES,
    all_intervals,
    by_key,
    check_target,
    metrics_of,
    trained_steps,
    write_json,
)
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.pretrained import Pretrained, load_pretrained, open_adapters, open_pretrained, use_adapter
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.hydra_job import is_multirun, output_dir
from gpt2x.tasks.registry import inference_for
from gpt2x.tracking import MetricsLog, NoTracker, RunInfo, Tracker, create_tracker, run_tags
from gpt2x.tracking.provenance import package_versions


def run(config: EvaluateConfig) -> None:
    """Evaluate as `config` says: a table, `results.json`, `scores.npz`, and the tracker.

    Raises:
        UserError: for anything the user can correct, before anything is evaluated.
    """
    run_dir, target = output_paths(config)
    outputs = Path(config.paths.outputs).expanduser()
    tracker = NoTracker() if launch.worker_rank() else create_tracker(config.tracker, outputs)
    set_up_device(config.hardware)
    mesh = Mesh(config.parallel, config.hardware.device_target)
    adapters = open_adapters(config.adapters)
    pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer, mesh, adapters)
    measurement = inference_for(pretrained.model).measurement(config, pretrained.model, pretrained.tokenizer)
    step = trained_steps(pretrained)

    if launch.is_deciding():
        save_config(config, run_dir / "config.yaml")
    name = display_name(pretrained)
    require_same(mesh, f"the content of dataset={config.dataset.name}", measurement.data_hash)
    with tracked(config, tracker, run_dir, f"{name}/{config.dataset.name}", measurement.data_hash):
        for note in measurement.notes:
            console.notice(note)
        measured = {}
        for adapter in adapters or [None]:
            if adapter is not None:
                use_adapter(pretrained, adapter, mesh)
            measured[adapter.name if adapter else ""] = measurement.run(pretrained, ReplicaBatches(mesh))
        if not mesh.is_main:
            return
        resamples, seed = config.evaluation.bootstrap_resamples, config.seed
        limits = {adapter: all_intervals(each, resamples, seed) for adapter, each in measured.items()}
        log_metrics(tracker, run_dir, step, metrics_of(measured, limits))
        tables = {adapter: measurement.report(each, limits[adapter]) for adapter, each in measured.items()}
        content = {"results": tables if config.adapters else tables[""]}
        write_json(target, content | circumstances(config, measurement, pretrained, step))
        save_scores(run_dir / SCORES, {key: each.scores for key, each in by_key(measured).items()})
        files = [target, run_dir / SCORES]
        for adapter, each in measured.items():
            title = f"{name}{' ' * bool(adapter)}{adapter} on {config.dataset.name} ({config.evaluation.split})"
            files += measurement.save(target.parent, f"{adapter}_" if adapter else "", title, each)
            measurement.show(f"{title}, {measurement.extent}", each, limits[adapter])
        for file in files:
            tracker.log_artifact(file)
        console.notice(f"results: {target}")


def log_metrics(tracker: Tracker, run_dir: Path, step: int | None, metrics: Mapping[str, float]) -> None:
    """Write `metrics` to metrics.jsonl and to the tracker."""
    time_s = MetricsLog(run_dir / "metrics.jsonl").append(step or 0, metrics)
    tracker.log_metrics(step or 0, time_s, metrics)


@contextlib.contextmanager
def tracked(config: EvaluateConfig, tracker: Tracker, run_dir: Path, run_name: str, data_hash: str) -> Iterator[None]:
    """Open the tracker's run and close it with the status that fits."""
    tracker.start(
        RunInfo(
            experiment=config.tracker.experiment or "evaluate",
            run_name=config.tracker.run_name or run_name,
            run_dir=run_dir,
            params=asdict(config),
            tags=run_tags(layout=config.parallel.name, hardware=config.hardware.name, data_hash=data_hash),
        )
    )
    status = "FAILED"
    try:
        tracker.log_artifact(run_dir / "config.yaml")
        yield
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def prepare_launch(config: EvaluateConfig) -> Path:
    """Check, once, all that the processes of a layout would; return a run directory with `config.yaml` for them.

    Data that had to be downloaded or prepared are in the cache afterwards.

    Raises:
        UserError: for anything the user can correct.
    """
    if is_multirun() and config.output:
        raise UserError(
            f"output={config.output} would be written by every job of the sweep; leave output out, and each job has a "
            "results.json of its own."
        )
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    run_dir, _ = output_paths(config)
    adapters = open_adapters(config.adapters)
    _, tokenizer, model = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters)
    inference_for(model).measurement(config, model, tokenizer)
    save_config(config, run_dir / "config.yaml")
    return run_dir


def output_paths(config: EvaluateConfig) -> tuple[Path, Path]:
    """Return the run directory and the file of the results.

    Raises:
        UserError: the file cannot be written.
    """
    run_dir = output_dir()
    target = Path(config.output).expanduser() if config.output else run_dir / RESULTS
    if launch.worker_rank() == 0:
        check_target(target)
    return run_dir, target


def display_name(pretrained: Pretrained) -> str:
    """Return `MODEL RUN step_N` for a run's checkpoint, `MODEL DIRECTORY` for any other directory."""
    path = pretrained.source.path.absolute()
    is_of_run = pretrained.source.kind == "gpt2x" and path.parent.name == "checkpoints"
    origin = f"{path.parents[1].name} {path.name}" if is_of_run else path.name
    return f"{pretrained.model.name} {origin}"


def circumstances(
    config: EvaluateConfig, measurement: Measurement, pretrained: Pretrained, step: int | None
) -> dict[str, object]:
    """Return the entries of `results.json` that say how the results were measured."""
    return {
        "adapters": config.adapters,
        "seed": config.seed,
        "load": {"path": str(pretrained.source.path.absolute()), "kind": pretrained.source.kind, "step": step},
        "model": asdict(pretrained.model),
        "dataset": asdict(config.dataset),
        "data_sha256": measurement.data_sha256,
        "tokenizer_fingerprint": pretrained.tokenizer.fingerprint,
        "evaluation": asdict(measurement.evaluation),
        "hardware": {"name": config.hardware.name, "precision": config.hardware.precision},
        "parallel": config.parallel.name,
        "versions": {"gpt2x": __version__} | package_versions(),
    }
