"""What all jobs of a sweep of `evaluate.py` measured, as one table: rows are checkpoints, columns are data sets.

Each job leaves its metrics in `metrics.jsonl`, the scores that they come from in `scores.npz`, and its circumstances in
`results.json`. A job that failed leaves nothing, and the table says so.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gpt2x.config import EvaluateConfig
from gpt2x.config.files import load_config
from gpt2x.evaluate.bootstrap import Scores, differences, load_scores
from gpt2x.evaluate.results import RESULTS, SCORES, write_json
from gpt2x.runtime.console import console, format_estimate
from gpt2x.runtime.files import shortened
from gpt2x.runtime.jobs import Job
from gpt2x.runtime.json_text import decoded
from gpt2x.tracking import jsonl, run_tags
from gpt2x.tracking.sweep_run import end_sweep_run

FAILED = "failed"


@dataclass(frozen=True)
class Row:
    """One metric of one job, as in `comparison.csv`; a failed job has only its checkpoint and data set."""

    job: int
    checkpoint: str
    adapter: str
    dataset: str
    metric: str = ""  # [PROTOCOL/]METRIC
    value: float | None = None
    low: float | None = None  # end of the 95 % interval
    high: float | None = None
    difference: float | None = None  # from the first row with this metric and data set
    difference_low: float | None = None
    difference_high: float | None = None
    status: str = "finished"  # finished | failed

    @property
    def model(self) -> str:
        """The checkpoint and its adapter, for a line of the table."""
        return " + ".join(filter(None, (self.checkpoint, self.adapter)))

    @property
    def estimate(self) -> str:
        """`20.58 [20.36, 20.81]`."""
        return _estimate(self.value, self.low, self.high)

    @property
    def difference_estimate(self) -> str:
        """The same for the difference; "" if there is none."""
        return _estimate(self.difference, self.difference_low, self.difference_high, "+")


@dataclass(frozen=True)
class Outcome:
    """What a finished job has written."""

    metrics: dict[str, float]
    scores: dict[str, Scores]  # by `[ADAPTER/][PROTOCOL]`
    results: dict[str, Any]  # results.json

    @classmethod
    def read(cls, run_dir: Path) -> Outcome:
        """Read the run directory of a job."""
        results = decoded(json.loads((run_dir / RESULTS).read_text(encoding="utf-8")))
        return cls(jsonl.read(run_dir / "metrics.jsonl")[-1], load_scores(run_dir / SCORES), results)

    @property
    def text(self) -> object:
        """An identity: two outcomes with the same one were measured on the same windows or texts."""
        return self.results["data_sha256"], self.results["tokenizer_fingerprint"]


def compare(sweep_dir: Path, jobs: Sequence[Job]) -> None:
    """Print the table, write `comparison.json` and `comparison.csv` into `sweep_dir`, and track them as a run.

    Do nothing if no job has finished.
    """
    finished = [job for job in jobs if job.has_succeeded]
    if not finished:
        return
    config = load_config("evaluate", finished[0].path / "config.yaml")
    outcomes = {job.number: Outcome.read(job.path) for job in finished}
    rows = rows_of(jobs, outcomes, config)
    report = {
        "rows": [asdict(row) for row in rows],
        "jobs": [
            {
                "job": job.number,
                "overrides": job.overrides,
                "run_dir": job.run_dir,
                "error": job.message,
            }
            for job in jobs
        ],
        "seed": config.seed,
        "bootstrap_resamples": config.evaluation.bootstrap_resamples,
    }
    files = sweep_dir / "comparison.json", sweep_dir / "comparison.csv"
    write_json(files[0], report)
    write_csv(files[1], rows)
    show(rows)
    for remark in remarks(rows, outcomes):
        console.notice(remark)
    console.notice(f"comparison: {files[0]}")
    track(config, sweep_dir, jobs, files)


def rows_of(jobs: Sequence[Job], outcomes: dict[int, Outcome], config: EvaluateConfig) -> list[Row]:
    """Return the metrics of all jobs, each with its difference from the first job with the same windows."""
    rows: list[Row] = []
    firsts: dict[tuple[str, str], tuple[object, Scores]] = {}  # by data set and protocol
    for job, (checkpoint, dataset) in zip(jobs, labels(jobs), strict=True):
        outcome = outcomes.get(job.number)
        if outcome is None:
            rows.append(Row(job.number, checkpoint, "", dataset, status=FAILED))
            continue
        for key, scores in outcome.scores.items():
            adapter, _, protocol = key.partition("/") if outcome.results["adapters"] else ("", "", key)
            text, first = firsts.setdefault((dataset, protocol), (outcome.text, scores))
            resamples = config.evaluation.bootstrap_resamples if first is not scores and text == outcome.text else None
            changes = differences(scores, first, resamples, config.seed) if resamples else {}
            for metric in scores.METRICS:
                name = "/".join(filter(None, ("eval", key, metric)))
                difference, interval = changes.get(metric, (None, (None, None)))
                value, low, high = (outcome.metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
                metric = "/".join(filter(None, (protocol, metric)))
                rows.append(
                    Row(job.number, checkpoint, adapter, dataset, metric, value, low, high, difference, *interval)
                )
    return rows


def labels(jobs: Sequence[Job]) -> list[tuple[str, str]]:
    """Return the names of each job's checkpoint and data set, as short as they stay different.

    Keys that differ between jobs are appended: those of `dataset` to the data set, the others to the checkpoint.
    """
    overrides = [dict(override.partition("=")[::2] for override in job.overrides) for job in jobs]
    keys = dict.fromkeys(key for keys in overrides for key in keys if key not in ("load", "dataset"))
    checkpoints = [[name] for name in shortened([job.load for job in jobs])]
    datasets = [[job.choices["dataset"]] for job in jobs]
    for key in keys:
        values = [keys_of_job.get(key, "") for keys_of_job in overrides]
        if len(set(values)) > 1:
            targets = datasets if key.startswith("dataset.") else checkpoints
            for target, value in zip(targets, shortened(values), strict=True):
                target.append(f"{key.removeprefix('dataset.')}={value}")
    return [
        (" ".join(checkpoint), " ".join(dataset)) for checkpoint, dataset in zip(checkpoints, datasets, strict=True)
    ]


def write_csv(target: Path, rows: Iterable[Row]) -> None:
    """Write a header and one line per row."""
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def show(rows: Sequence[Row]) -> None:
    """Print the table: each metric with its models, each model with its difference from the first one."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    models = list(dict.fromkeys((row.checkpoint, row.model) for row in rows if row.metric))
    models += [(row.checkpoint, row.checkpoint) for row in rows if row.checkpoint not in dict(models)]
    failed = {(row.checkpoint, row.dataset) for row in rows if row.status == FAILED}
    cells = {(row.metric, row.model, row.dataset): row for row in rows}
    metrics = list(dict.fromkeys(row.metric for row in rows if row.metric))
    lines: list[list[str]] = []
    for metric in metrics:
        if metric.removesuffix("loss") + "ppl" in metrics:  # the perplexity says the same
            continue
        lines.append([metric, *[""] * len(datasets)])
        for checkpoint, model in dict.fromkeys(models):
            row_cells = [cells.get((metric, model, dataset)) for dataset in datasets]
            if not any(row_cells) and any(row.metric and row.model == model for row in rows):  # other metrics
                continue
            lines.append([f"  {model}"])
            lines[-1] += [
                row.estimate if row else FAILED if (checkpoint, dataset) in failed else ""
                for row, dataset in zip(row_cells, datasets, strict=True)
            ]
            if any(row and row.difference is not None for row in row_cells):
                lines.append(["    difference", *[row.difference_estimate if row else "" for row in row_cells]])
    console.table("Comparison, with 95 % intervals", ["", *datasets], lines)


def _estimate(value: float | None, low: float | None, high: float | None, sign: str = "") -> str:
    interval = None if low is None or high is None else (low, high)
    return "" if value is None else format_estimate(value, interval, sign)


def remarks(rows: Sequence[Row], outcomes: dict[int, Outcome]) -> list[str]:
    """Return what a reader has to know to compare the rows."""
    notes = []
    if any(row.difference is not None for row in rows):
        notes.append("difference: from the first row of the metric and data set, on the same draws of windows or texts")
    tokenizers = {outcome.results["tokenizer_fingerprint"] for outcome in outcomes.values()}
    if len(tokenizers) > 1 and any("/" in row.metric for row in rows):
        notes.append(f"{len(tokenizers)} tokenizers: only word/ppl can be compared, the other metrics are per token")
    return notes


def track(config: EvaluateConfig, sweep_dir: Path, jobs: Sequence[Job], files: Iterable[Path]) -> None:
    """Track the comparison in the parent run of the sweep."""
    end_sweep_run(
        sweep_dir,
        config.tracker,
        Path(config.paths.outputs).expanduser(),
        experiment="evaluate",
        artifacts=files,
        params={"job": {str(job.number): " ".join(job.overrides) for job in jobs}},
        tags=run_tags(config.hardware, layout=config.parallel.name),
    )
