"""`evaluate.py`: one flow for every kind of model; what is measured of each is a `Measurement`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from gpt2x import __version__
from gpt2x.config import EvaluateConfig, EvaluationConfig, ModelConfig
from gpt2x.config.files import save_config
from gpt2x.convert import GPT2XSource
from gpt2x.data.tokenizer import Tokenizer
from gpt2x.errors import UserError
from gpt2x.evaluate.bootstrap import Intervals, Scores, flat, intervals, save_scores
from gpt2x.evaluate.classifier import ClassMeasurement
from gpt2x.evaluate.perplexity import PerplexityMeasurement
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.pretrained import Pretrained, load_pretrained, open_adapters, open_pretrained, require_single, use_adapter
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.device import set_up_device
from gpt2x.runtime.hydra_job import is_multirun, output_dir
from gpt2x.tracking import MetricsLog, NoTracker, RunInfo, Tracker, create_tracker, run_tags
from gpt2x.tracking.provenance import package_versions

RESULTS, SCORES = "results.json", "scores.npz"


class Measured(Protocol):
    """A model's metrics, and what each window or text contributed to them."""

    metrics: dict[str, float]
    scores: Scores


class Measurement(Protocol):
    """What is measured of a kind of model, by name: a protocol, or "" where there is one only.

    Making one raises UserError for all that the user can put right.
    """

    evaluation: EvaluationConfig  # without nulls
    data_sha256: object  # for results.json
    data_hash: str
    extent: str  # what the results are over, for a title
    notes: Iterator[str] | list[str]

    def run(self, pretrained: Pretrained, replicas: ReplicaBatches) -> Mapping[str, Any]:
        """Measure: a `Measured` each."""

    def report(self, found: Mapping[str, Any], intervals: Mapping[str, Intervals]) -> dict[str, object]:
        """The part of `results.json`."""

    def save(self, folder: Path, prefix: str, title: str, found: Mapping[str, Any]) -> list[Path]:
        """Write further files into `folder`, their names behind `prefix`."""

    def show(self, title: str, found: Mapping[str, Any], intervals: Mapping[str, Intervals]) -> None:
        """Print a table."""


def run(config: EvaluateConfig) -> None:
    """Evaluate as `config` says: a table, `results.json`, `scores.npz`, and the tracker.

    Raises:
        UserError: for anything the user can put right, before anything is evaluated.
    """
    run_dir, target = places(config)
    outputs = Path(config.paths.outputs).expanduser()
    tracker = NoTracker() if launch.worker_rank() else create_tracker(config.tracker, outputs)
    set_up_device(config.hardware)
    mesh = Mesh(config.parallel, config.hardware.device_target)
    adapters = open_adapters(config.adapters)
    pretrained = load_pretrained(str(config.load), config.hardware, config.tokenizer, mesh, adapters)
    measurement = measurement_of(config, pretrained.model, pretrained.tokenizer)
    step = trained_steps(pretrained)

    if launch.is_deciding():
        save_config(config, run_dir / "config.yaml")
    name = display_name(pretrained)
    require_same(mesh, f"the content of dataset={config.dataset.name}", measurement.data_hash)
    with tracked(config, tracker, run_dir, f"{name}/{config.dataset.name}", measurement.data_hash):
        for note in measurement.notes:
            console.notice(note)
        found = {}
        for adapter in adapters or [None]:
            if adapter is not None:
                use_adapter(pretrained, adapter, mesh)
            found[adapter.name if adapter else ""] = measurement.run(pretrained, ReplicaBatches(mesh))
        if not mesh.is_main:
            return
        limits = {adapter: intervals_of(measured, config) for adapter, measured in found.items()}
        log_metrics(tracker, run_dir, step, metrics_of(found, limits))
        tables = {adapter: measurement.report(measured, limits[adapter]) for adapter, measured in found.items()}
        content = {"results": tables if config.adapters else tables[""]}
        write_json(target, content | circumstances(config, measurement, pretrained, step))
        save_scores(run_dir / SCORES, {key: each.scores for key, each in by_key(found).items()})
        files = [target, run_dir / SCORES]
        for adapter, measured in found.items():
            title = f"{name}{' ' * bool(adapter)}{adapter} on {config.dataset.name} ({config.evaluation.split})"
            files += measurement.save(target.parent, f"{adapter}_" if adapter else "", title, measured)
            measurement.show(f"{title}, {measurement.extent}", measured, limits[adapter])
        for file in files:
            tracker.log_artifact(file)
        console.notice(f"results: {target}")


def measurement_of(config: EvaluateConfig, model: ModelConfig, tokenizer: Tokenizer) -> Measurement:
    """What is measured of `model`."""
    if model.labels:
        require_single(config, model)
        return ClassMeasurement(config, model, tokenizer)
    return PerplexityMeasurement(config, model, tokenizer)


def intervals_of(found: Mapping[str, Measured], config: EvaluateConfig) -> dict[str, Intervals]:
    """The 95 % interval of each metric, by name; none where they are not wanted."""
    resamples = config.evaluation.bootstrap_resamples
    return {
        name: intervals(measured.scores, resamples, config.seed) if resamples else {}
        for name, measured in found.items()
    }


def by_key(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is kept by adapter and name, by `ADAPTER/NAME` with what is there of the two."""
    return {
        "/".join(part for part in (adapter, name) if part): measured
        for adapter, by_name in found.items()
        for name, measured in by_name.items()
    }


def metrics_of(
    found: Mapping[str, Mapping[str, Measured]], limits: Mapping[str, Mapping[str, Intervals]]
) -> dict[str, float]:
    """`eval/[ADAPTER/][PROTOCOL/]METRIC`, and `METRIC_low` and `METRIC_high`, the ends of its interval."""
    found_limits = by_key(limits)
    return {
        "/".join(part for part in ("eval", key, metric) if part): value
        for key, measured in by_key(found).items()
        for metric, value in flat(measured.metrics, found_limits[key]).items()
    }


def log_metrics(tracker: Tracker, run_dir: Path, step: int | None, metrics: Mapping[str, float]) -> None:
    """Into metrics.jsonl, and the tracker."""
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
    """Check, once, all that the processes of a layout would: a run directory, with `config.yaml` for them.

    What is downloaded or prepared is in the cache then.

    Raises:
        UserError: for anything the user can put right.
    """
    if is_multirun() and config.output:
        raise UserError(
            f"output={config.output} would be written by every job of the sweep: leave output out, and each job has a "
            "results.json of its own"
        )
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    run_dir, _ = places(config)
    adapters = open_adapters(config.adapters)
    _, tokenizer, model = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters)
    measurement_of(config, model, tokenizer)
    save_config(config, run_dir / "config.yaml")
    return run_dir


def places(config: EvaluateConfig) -> tuple[Path, Path]:
    """The run directory, and the file of the results.

    Raises:
        UserError: the file cannot be written.
    """
    run_dir = output_dir()
    target = Path(config.output).expanduser() if config.output else run_dir / RESULTS
    if launch.worker_rank() == 0:
        check_target(target)
    return run_dir, target


def trained_steps(pretrained: Pretrained) -> int | None:
    """The step of a gpt2x checkpoint; a converted one has none."""
    source = pretrained.source
    return source.checkpoint.loop_state.get("step") if isinstance(source, GPT2XSource) else None


def display_name(pretrained: Pretrained) -> str:
    """`MODEL RUN step_N` of a run's checkpoint, `MODEL DIRECTORY` of another directory."""
    path = pretrained.source.path.absolute()
    is_of_run = pretrained.source.kind == "gpt2x" and path.parent.name == "checkpoints"
    place = f"{path.parents[1].name} {path.name}" if is_of_run else path.name
    return f"{pretrained.model.name} {place}"


def check_target(target: Path) -> None:
    """Refuse a results file that could not be written at the end."""
    if target.is_dir():
        raise UserError(f"output={target} is a directory: give a file, such as output={target / 'results.json'}")
    probe = target.with_name(f".{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"output={target} cannot be written ({error.strerror}): give another file") from error


def circumstances(
    config: EvaluateConfig, measurement: Measurement, pretrained: Pretrained, step: int | None
) -> dict[str, object]:
    """What results were found with."""
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


def write_json(target: Path, content: object, default: Callable[[Any], object] | None = None) -> None:
    """Replace `target` in one go; `default` stands in for what JSON has no form for."""
    part = target.with_name(f".{target.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=default) + "\n", encoding="utf-8")
    os.replace(part, target)
