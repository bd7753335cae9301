"""`evaluate.py` and `gpt2x evaluate`: a table, `results.json` and `scores.npz` of one model on one data set."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2x import __version__
from gpt2x.commands.configuration import save_config
from gpt2x.config import EvaluateConfig
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
from gpt2x.lora.adapter import Adapter
from gpt2x.parallel.agreement import require_same
from gpt2x.parallel.mesh import Mesh
from gpt2x.parallel.replica_batches import ReplicaBatches
from gpt2x.pretrained import OpenedModel, Pretrained, build_pretrained, open_adapters, open_pretrained, use_adapter
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.hub import pinned
from gpt2x.runtime.role import Role
from gpt2x.tasks.registry import inference_for
from gpt2x.tracking import MetricsLog, NoTracker, RunInfo, Tracker, create_tracker, describe_run, tracked
from gpt2x.tracking.provenance import package_versions


@dataclass(frozen=True)
class Decision:
    """An evaluation that can begin.

    Attributes:
        config: the configuration that was typed.
        run_dir: the run directory.
        target: the file of the results.
        opened: the model of `load=`, its weights unread.
        adapters: the adapters that are evaluated, each for itself; none: the model without adapters.
        measurement: what is measured, on data that are in the cache.
    """

    config: EvaluateConfig
    run_dir: Path
    target: Path
    opened: OpenedModel
    adapters: Sequence[Adapter]
    measurement: Measurement

    @property
    def resolved(self) -> EvaluateConfig:
        """The configuration, with the commit of a repository of the hub."""
        return replace(self.config, load=pinned(str(self.config.load), self.opened.source.path))


def decide(config: EvaluateConfig, run_dir: Path, role: Role) -> Decision:
    """Open the model and prepare the data, so that every mistake is reported before a device is set up.

    Raises:
        UserError: for anything the user can put right.
    """
    if role.is_sweeping and config.output:
        raise UserError(
            f"output={config.output} would be written by every job of the sweep; leave output out, and each job has a "
            "results.json of its own."
        )
    create_tracker(config.tracker, Path(config.paths.outputs).expanduser())
    target = Path(config.output).expanduser() if config.output else run_dir / RESULTS
    if role.rank == 0:
        check_target(target)
    adapters = open_adapters(config.adapters)
    opened = open_pretrained(str(config.load), config.tokenizer, config.parallel, adapters, verify=role.decides)
    measurement = inference_for(opened.model).measurement(config, opened.model, opened.tokenizer)
    return Decision(config, run_dir, target, opened, adapters, measurement)


def open_run_dir(decision: Decision) -> None:
    """Write `config.yaml`."""
    save_config(decision.resolved, launch.config_path(decision.config.launch.node_rank, decision.run_dir))


def run(decision: Decision, mesh: Mesh) -> None:
    """Evaluate, as one process of the layout; rank 0 prints, writes and tracks."""
    config, measurement = decision.config, decision.measurement
    outputs = Path(config.paths.outputs).expanduser()
    tracker = create_tracker(config.tracker, outputs) if mesh.is_main else NoTracker()
    pretrained = build_pretrained(decision.opened, config.hardware, mesh, decision.adapters)
    require_same(mesh, f"the content of dataset={config.dataset.name}", measurement.data_hash)
    # a number that is not finite is named at the end, and not wherever it passes
    with tracked(tracker, run_info(decision, pretrained)), np.errstate(invalid="ignore", over="ignore"):
        for note in measurement.notes:
            console.notice(note)
        measured = {}
        for adapter in decision.adapters or [None]:
            if adapter is not None:
                use_adapter(pretrained, adapter, mesh)
            measured[adapter.name if adapter else ""] = measurement.run(pretrained, ReplicaBatches(mesh))
        if mesh.is_main:
            report(decision, pretrained, measured, tracker)


def report(decision: Decision, pretrained: Pretrained, measured: Mapping[str, Any], tracker: Tracker) -> None:
    """Print, write and track what was measured, by the adapter's name."""
    config, measurement, target = decision.config, decision.measurement, decision.target
    step, name = trained_steps(pretrained), display_name(pretrained)
    resamples, seed = config.evaluation.bootstrap_resamples, config.seed
    limits = {adapter: all_intervals(each, resamples, seed) for adapter, each in measured.items()}
    metrics = metrics_of(measured, limits)
    log_metrics(tracker, decision.run_dir, step, metrics)
    tables = {adapter: measurement.report(each, limits[adapter]) for adapter, each in measured.items()}
    content = {"results": tables if config.adapters else tables[""]}
    write_json(target, content | circumstances(config, measurement, pretrained, step))
    scores = decision.run_dir / SCORES
    save_scores(scores, {key: each.scores for key, each in by_key(measured).items()})
    files = [target, scores]
    for adapter, each in measured.items():
        title = f"{name}{' ' * bool(adapter)}{adapter} on {config.dataset.name} ({config.evaluation.split})"
        files += measurement.save(target.parent, f"{adapter}_" if adapter else "", title, each)
        measurement.show(f"{title}, {measurement.extent}", each, limits[adapter])
    for file in files:
        tracker.log_artifact(file)
    console.notice(f"results: {target}")
    if wrong := [name.removeprefix("eval/") for name, value in metrics.items() if not math.isfinite(value)]:
        raise UserError(
            f"load={config.load}: {', '.join(wrong[:5])} {'is' if len(wrong) == 1 else 'are'} not finite: the model's "
            "outputs overflow or are NaN, so these results compare with nothing. Use other weights, or "
            "hardware.precision=fp32."
        )


def log_metrics(tracker: Tracker, run_dir: Path, step: int | None, metrics: Mapping[str, float]) -> None:
    """Write `metrics` to metrics.jsonl and to the tracker."""
    tracker.log_metrics(*MetricsLog(run_dir / "metrics.jsonl").append(step or 0, metrics))


def run_info(decision: Decision, pretrained: Pretrained) -> RunInfo:
    """Return the evaluation as a tracker shows it."""
    config = decision.config
    return describe_run(
        config,
        decision.run_dir,
        experiment="evaluate",
        name=f"{display_name(pretrained)}/{config.dataset.name}",
        named=("load",),
        data_hash=decision.measurement.data_hash,
        inputs=decision.measurement.inputs,
    )


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
