"""A comparison as CSV and JSON, for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

from gpt2x.reports import statistics
from gpt2x.reports.comparison import Comparison, baseline_of
from gpt2x.reports.curves import AXES, axis_values, final_train_loss
from gpt2x.reports.run import TRAIN


def to_csv(comparison: Comparison) -> str:
    """Return a header and a row per run: name, group, directory, status, differing keys, results, speed.

    Metrics of validation are the newest, those of speed are medians, `memory_gb` is the most after a step.
    """
    rows = []
    for index, run in enumerate(comparison.runs):
        best = run.best(comparison.metric)
        row: dict[str, Any] = {
            "run": comparison.names[index],
            "group": comparison.groups[comparison.group_of[index]].name,
            "run_dir": str(run.path),
            "status": run.status,
            "seed": run.seed,
        }
        row |= {key: comparison.values[index].get(key, "") for key in comparison.differing}
        row |= {"step": run.step, f"best {comparison.metric}": best and best.value, "best step": best and best.step}
        row |= {name: run.last(name) for name in comparison.validated}
        row |= {"train/loss": final_train_loss(run, comparison.width)}
        row |= {name: run.median(name) for name in ("perf/tokens_per_s", "perf/mfu", "perf/step_time_s")}
        row |= {name: run.most(name) for name in ("perf/memory_gb", "perf/device_memory_peak_gb")}
        row |= {name: run.first(name) for name in ("perf/startup_time_s", "perf/compile_time_s")}
        for axis in AXES[1:]:
            values = axis_values(run, axis.name)
            row[axis.name] = None if values is None else float(values[-1])
        rows.append(row)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def to_json(comparison: Comparison) -> str:
    """Return runs and groups with all values that the tables have; values that are not finite are null."""
    measured = comparison.measured()
    groups = []
    for number, group in enumerate(comparison.groups):
        entry: dict[str, Any] = {"name": group.name, "runs": [comparison.names[index] for index in group.members]}
        entry["counted"] = [comparison.names[index] for index in group.counted]
        for name, values in measured.items():
            counted = comparison.counted(values)
            baseline = baseline_of(counted)
            mean = statistics.estimate(counted[number])
            change = statistics.difference(counted[number], counted[baseline]) if number != baseline else None
            entry[name] = {
                **(vars(mean) if mean else {}),
                **({"difference": change.value, "difference_interval": change.interval} if change else {}),
            }
        groups.append(entry)
    runs = []
    for index, run in enumerate(comparison.runs):
        best = run.best(comparison.metric)
        runs.append(
            {
                "name": comparison.names[index],
                "run_dir": str(run.path),
                "kind": run.kind or TRAIN,
                "status": run.status,
                "message": run.message,
                "command": run.command,
                "seed": run.seed,
                "step": run.step,
                "differences": {key: comparison.values[index].get(key) for key in comparison.differing},
                "best": {"metric": comparison.metric, "value": best.value, "step": best.step} if best else None,
                "last": {name: run.last(name) for name in run.metrics},
                "measured": {name: values[index] for name, values in measured.items()},
            }
        )
    content = {"metric": comparison.metric, "baseline": comparison.groups[0].name, "groups": groups, "runs": runs}
    return json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
