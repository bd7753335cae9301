"""A run directory as reports read it: configuration, metrics, samples, and how the run ended."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt2x.config import TrainConfig
from gpt2x.config.keys import defaults, flatten, leaves
from gpt2x.config.options import SCHEMAS
from gpt2x.errors import UserError
from gpt2x.runtime.jobs import FAILED, FINISHED, JOB, KILLED, RUNNING, SWEEP, Job, read_command, read_job
from gpt2x.tracking import jsonl
from gpt2x.tracking.best import Best, best_value
from gpt2x.trainable import trainable_of

STOPPED, EMPTY, DAMAGED = "stopped", "no metrics yet", "damaged"
CONFIG, METRICS, PICTURE, RESULTS = "config.yaml", "metrics.jsonl", "loss.png", "results.json"
TRAIN, EVALUATE = "train", "evaluate"
OF_MULTIRUN = (SWEEP, "multirun.yaml")  # in the directory of a multirun
QUIET_S = 300.0  # a run that wrote nothing for so long is not called running

_SAMPLE = re.compile(r"^=== step (\d+) ===\n", re.MULTILINE)
_LOWER = re.compile(r"(loss|ppl|perplexity|bits_per_byte|bpb|grad_norm|(?<!_per)_s|_gb)$")


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        path: the run directory.
        kind: the command: `train` or `evaluate`; "" if the configuration is missing.
        config: the resolved configuration by dotted key; keys that the file lacks have their defaults.
        rows: lines of metrics.jsonl in the order of steps, one per step.
        job: what is written down about it as a job of a multirun; None if it is no job.
        status: `running`, `finished`, `pruned`, `failed`, `killed`, `stopped`, `no metrics yet` or `damaged`.
        message: why it failed, or what is damaged; else "".
    """

    path: Path
    kind: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    job: Job | None
    status: str
    message: str = ""

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.config.get("seed") or 0)

    @property
    def command(self) -> str | None:
        """The newest command line that started or resumed the run, if it was written down."""
        return read_command(self.path)

    @property
    def has_finished(self) -> bool:
        """Whether its values count in means over seeds."""
        return self.status == FINISHED and bool(self.rows)

    @property
    def best_metric(self) -> str:
        """The metric that the run compares itself by; of an evaluation the first one."""
        if self.job and self.job.objective in self.metrics:
            return self.job.objective
        if self.kind == EVALUATE:
            return next((name for name in self.metrics if not name.endswith(("_low", "_high"))), "")
        return str(self.config.get("trainer.best_metric") or "val/loss")

    @cached_property
    def metrics(self) -> list[str]:
        """The names of all metrics, in the order in which they appear."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [name for name in names if name not in ("step", "time")]

    @cached_property
    def flops_per_token(self) -> float | None:
        """The model FLOPs per token of a training run; None if its configuration does not say them.

        Keys that this version does not have are passed over, so that runs of other versions can be compared.
        """
        if self.kind != TRAIN:
            return None
        schema, keys = OmegaConf.structured(TrainConfig), leaves(TrainConfig)
        try:
            for key, value in self.config.items():
                if key in keys:
                    OmegaConf.update(schema, key, value)
            config = OmegaConf.to_object(schema)
            assert isinstance(config, TrainConfig)
            return trainable_of(config, config.model).flops_per_token(config.trainer.seq_len)
        except (OmegaConfBaseException, UserError, AssertionError):  # such as a vocabulary that is not known yet
            return None

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices of the rows that have a metric, and its values; non-finite ones are NaN."""
        pairs = [(index, row[metric]) for index, row in enumerate(self.rows) if _is_number(row.get(metric))]
        values = np.array([value for _, value in pairs], dtype=float)
        return np.array([index for index, _ in pairs], dtype=int), np.where(np.isfinite(values), values, np.nan)

    def best(self, metric: str) -> Best | None:
        """Return the best finite value of a metric and its step; None if there is none."""
        return best_value(self.rows, metric, "lower" if is_lower_better(metric) else "higher")

    def last(self, metric: str) -> float | None:
        """Return the newest value of a metric, NaN included; None if there is none."""
        _, values = self.series(metric)
        return float(values[-1]) if len(values) else None

    def first(self, metric: str) -> float | None:
        """Return the first value of a metric; None if there is none."""
        _, values = self.series(metric)
        return float(values[0]) if len(values) else None

    def most(self, metric: str) -> float | None:
        """Return the largest value of a metric; None if there is none."""
        _, values = self.series(metric)
        return float(np.nanmax(values)) if np.isfinite(values).any() else None

    def median(self, metric: str) -> float | None:
        """Return the median over all steps of a metric; None if there is none."""
        _, values = self.series(metric)
        return float(np.nanmedian(values)) if np.isfinite(values).any() else None

    @property
    def step(self) -> int:
        """The newest step, 0 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def samples(self) -> tuple[int, list[str]] | None:
        """The newest step with samples, and the prompts with their completions; None if there are none."""
        try:
            text = (self.path / "samples.txt").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        _, *parts = _SAMPLE.split(text)
        steps, texts = [int(step) for step in parts[::2]], parts[1::2]
        if not steps:
            return None
        return steps[-1], [each.rstrip("\n") for step, each in zip(steps, texts, strict=True) if step == steps[-1]]


def is_lower_better(metric: str) -> bool:
    """Return whether smaller values of a metric are better, by its name; every task's `metrics` agrees (tested)."""
    return bool(_LOWER.search(metric))


def is_run(path: Path) -> bool:
    """Return whether a directory is that of a run, or of a job that ended before it became one.

    A multirun's has metrics of its jobs together, which are no run.
    """
    has_jobs = any((path / name).is_file() for name in OF_MULTIRUN)
    return not has_jobs and any((path / name).is_file() for name in (CONFIG, METRICS, JOB))


def read_run(path: Path) -> Run:
    """Read a run directory; what is damaged becomes the run's status, not an error.

    Raises:
        UserError: the directory holds no run.
    """
    if not is_run(path):
        raise UserError(
            f"{path} is no run directory: it has no {METRICS} and no {CONFIG}. Give the directory of a run."
        )
    job, problem, rows = read_job(path), "", []
    try:
        kind, config = read_config(path / CONFIG)
    except ValueError as error:
        kind, config, problem = "", {}, str(error)
    try:
        rows = rows_of(path / METRICS)
    except (ValueError, OSError) as error:
        problem = str(error)
    if problem:
        return Run(path, kind, config, rows, job, DAMAGED, problem)
    return Run(path, kind, config, rows, job, status_of(path, kind, rows, job), job.message if job else "")


def read_config(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the command that wrote a `config.yaml`, and its values by dotted key with defaults; ("", {}) if missing.

    Raises:
        ValueError: the file is damaged, or of another command.
    """
    if not path.is_file():
        return "", {}
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: not a configuration")
    kind = TRAIN if "trainer" in values else EVALUATE if "evaluation" in values else ""
    if not kind:
        raise ValueError(f"{path}: neither a training nor an evaluation")
    root = SCHEMAS[kind]
    flat = defaults(root) | flatten(values, root)
    return kind, {key: flat[key] for key in [*leaves(root), *flat] if key in flat}  # in the schema's order


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a `metrics.jsonl`, one per step, in order; [] if there is no file yet.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.is_file():
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for row in jsonl.read(path):
        by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]


def status_of(path: Path, kind: str, rows: list[dict[str, Any]], job: Job | None) -> str:
    """Return how a run ended, or whether it is running, from what it wrote.

    A job's `job.json` says it. Other runs draw `loss.png`, or write `results.json`, when they end as they should.
    """
    newest = max((file.stat().st_mtime for file in (path / METRICS, path / JOB) if file.is_file()), default=0.0)
    is_quiet = time.time() - newest > QUIET_S
    if job and not (job.status == RUNNING and is_quiet):
        return job.status
    last = path / (RESULTS if kind == EVALUATE else PICTURE)
    if rows and last.is_file() and last.stat().st_mtime >= rows[-1]["time"] - 1:
        return FINISHED
    tracked = tracked_status(path)
    if tracked:
        return tracked
    if not rows:
        return EMPTY
    return STOPPED if is_quiet else RUNNING


def tracked_status(path: Path) -> str:
    """Return `failed` or `killed` if the tracker's record says so, else ""."""
    try:
        record = json.loads((path / "mlflow_run.json").read_text(encoding="utf-8"))
        return {"FAILED": FAILED, "KILLED": KILLED}.get(record["status"], "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def finite(value: float | None) -> float | None:
    """Return the value, or None if it is not finite."""
    return value if value is not None and math.isfinite(value) else None
