"""Several runs beside each other: names, groups over seeds, and the tables of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from gpt2x.errors import UserError, did_you_mean
from gpt2x.reports import naming, statistics
from gpt2x.reports.curves import axis_values, final_train_loss, smoothing_width
from gpt2x.reports.run import EVALUATE, TRAIN, Run, is_lower_better
from gpt2x.reports.tables import Cell, Table, duration, metric_text, number, scientific, state, text
from gpt2x.runtime.console import format_estimate, format_interval

OF_STATISTICS = (
    "Runs that differ only in their seed are one group. Interval: 95 % of the mean by Student's t over n seeds "
    "(n >= 2). Difference: from the first group, with Welch's 95 % interval."
)
MANY_RUNS = 6  # which do not fit beside each other as columns
TRAIN_LOSS, SPEED = "train/loss, end", "perf/tokens_per_s, median"


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed.

    Attributes:
        name: what its runs have in common and other groups do not.
        members: positions of its runs in `Comparison.runs`.
        counted: those whose values count in means: finished, and the last one of each seed.
    """

    name: str
    members: tuple[int, ...]
    counted: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order of the rows; the first one's group is the baseline.
        names: of the runs, all different.
        groups: in the order of their first runs.
        differing: the keys in which configurations differ.
        values: the configuration of each run, as text.
        metric: what best values are compared by.
    """

    runs: list[Run]
    names: list[str]
    groups: list[Group]
    differing: list[str]
    values: list[dict[str, str]]
    metric: str

    @cached_property
    def width(self) -> int:
        """Steps over which training losses are averaged."""
        return smoothing_width(self.runs)

    @property
    def title(self) -> str:
        """What the report is called."""
        return f"{len(self.runs)} runs" if len(self.runs) != 1 else self.names[0]

    @cached_property
    def group_of(self) -> list[int]:
        """The number of each run's group."""
        numbers = {run: number for number, group in enumerate(self.groups) for run in group.members}
        return [numbers[index] for index in range(len(self.runs))]

    @property
    def has_seeds(self) -> bool:
        """Whether any mean is over several runs."""
        return any(len(group.counted) > 1 for group in self.groups)

    @cached_property
    def validated(self) -> list[str]:
        """The metrics of validations and evaluations, without the ends of intervals."""
        names = dict.fromkeys(name for run in self.runs for name in run.metrics)
        return [name for name in names if name.startswith(("val/", "eval/")) and not name.endswith(("_low", "_high"))]

    @property
    def excluded(self) -> list[str]:
        """What does not count in means, in words."""
        counted = {index for group in self.groups for index in group.counted}
        return [
            f"{self.names[index]} ({run.status if not run.has_finished else 'its seed ran again'})"
            for index, run in enumerate(self.runs)
            if index not in counted
        ]

    @cached_property
    def best(self) -> int | None:
        """The position of the run with the best value, finished ones first; None if no run has one."""
        pairs = [(index, best.value) for index, run in enumerate(self.runs) if (best := run.best(self.metric))]
        finished = [pair for pair in pairs if self.runs[pair[0]].has_finished] or pairs
        choose = min if is_lower_better(self.metric) else max
        return choose(finished, key=lambda pair: pair[1])[0] if finished else None

    @property
    def summary(self) -> str:
        """Which run is the best, in words; "" if there is only one."""
        if self.best is None or len(self.runs) < 2:
            return ""
        best = self.runs[self.best].best(self.metric)
        assert best is not None
        where = f" at step {best.step:,}" if self.runs[self.best].kind == TRAIN else ""
        return f"best {self.metric}: {metric_text(best.value)}{where}, {self.names[self.best]}"

    def counted(self, values: Sequence[float | None]) -> list[list[float]]:
        """Return of a value per run those that count, by group."""
        return [[value for i in group.counted if (value := values[i]) is not None] for group in self.groups]

    def measured(self) -> dict[str, list[float | None]]:
        """Return what groups are compared by: its name -> a value per run."""
        best = [pair.value if (pair := run.best(self.metric)) else None for run in self.runs]
        measured = {f"{self.metric}, best": best}
        measured |= {f"{name}, last": [run.last(name) for run in self.runs] for name in self.validated}
        measured[TRAIN_LOSS] = [final_train_loss(run, self.width) for run in self.runs]
        measured[SPEED] = [run.median("perf/tokens_per_s") for run in self.runs]
        if all(run.kind == EVALUATE for run in self.runs):  # measured once: nothing is best or last
            del measured[f"{self.metric}, best"]
        return {name: values for name, values in measured.items() if any(value is not None for value in values)}


def compare(runs: Sequence[Run], metric: str | None = None) -> Comparison:
    """Return runs side by side.

    Args:
        runs: at least one.
        metric: what best values are compared by; None: the first run's `trainer.best_metric`, or objective.

    Raises:
        UserError: no run has metrics, or none has this one.
    """
    runs = list(runs)
    available = list(dict.fromkeys(name for run in runs for name in run.metrics))
    if not available:
        states = "; ".join(f"{run.path}: {run.status}{run.message and f' ({run.message})'}" for run in runs[:5])
        raise UserError(f"there is nothing to compare yet, since no run has metrics ({states}).")
    trained_first = sorted(runs, key=lambda run: run.kind == EVALUATE)  # stable
    chosen = metric or next((run.best_metric for run in trained_first if run.best_metric in run.metrics), available[0])
    if chosen not in available:
        raise UserError(
            f"--metric {chosen}: no run has it; {did_you_mean(chosen, available)}metrics: {', '.join(available)}."
        )
    values = [naming.values_of(run) for run in runs]
    keys = naming.naming_keys(values)
    of_groups = naming.labels(values, keys) if keys else [naming.default_name(runs[0])] * len(runs)
    of_groups = [name or naming.default_name(run) for name, run in zip(of_groups, runs, strict=True)]
    by_values: dict[tuple[str, ...], list[int]] = {}
    for index, each in enumerate(values):
        by_values.setdefault(tuple(each.get(key, "") for key in keys), []).append(index)
    groups = [
        Group(of_groups[members[0]], tuple(members), tuple(_counted(runs, members))) for members in by_values.values()
    ]
    seeds = [each.get(naming.SEED) for each in values]
    has_seeds = len({seed for seed in seeds if seed is not None}) > 1
    names = [
        f"{name} seed={seed}" if has_seeds and seed is not None else name
        for name, seed in zip(of_groups, seeds, strict=True)
    ]
    return Comparison(runs, naming.unique(names, runs), groups, naming.differing_keys(values), values, chosen)


def baseline_of(of_groups: Sequence[Sequence[float]]) -> int:
    """Return the number of the group from which differences are taken: the first that has a value."""
    return next((number for number, values in enumerate(of_groups) if values), 0)


def _counted(runs: list[Run], members: list[int]) -> list[int]:
    by_seed = {runs[index].seed: index for index in members if runs[index].has_finished}
    return sorted(by_seed.values())


# ---- tables


def results(comparison: Comparison) -> Table:
    """Return what the runs reached; of evaluations all metrics with the intervals that they have."""
    metric, rows = comparison.metric, []
    is_evaluated = all(run.kind == EVALUATE for run in comparison.runs)  # once, so nothing is best or last
    others = [name for name in comparison.validated if is_evaluated or name != metric]
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        best = None if is_evaluated else run.best(metric)
        tokens = axis_values(run, "tokens")
        rows.append(
            [
                text(name),
                state(run.status),
                number(run.step, ",d"),
                number(best.value if best else None, metric_text),
                number(best.step if best else None, ",d"),
                number(run.last(metric) if run.kind == TRAIN else None, metric_text),
                *[_measured(run, other) for other in others],
                number(final_train_loss(run, comparison.width), metric_text),
                number(float(tokens[-1]) if tokens is not None else None, ",.0f"),
            ]
        )
    columns = ["run", "status", "step", f"best {metric}", "at step", f"last {metric}"]
    columns += [name if name.startswith("eval/") else f"last {name}" for name in others]
    note = f"train/loss: mean of the last {comparison.width} steps. " if comparison.width > 1 else ""
    note += f"Best: the {'lowest' if is_lower_better(metric) else 'highest'} value over all validations."
    if is_evaluated:
        note = "Intervals: 95 %, over windows or texts (docs/evaluation.md). Step: of the checkpoint."
    table = Table("Results", [*columns, "train/loss", "tokens"], rows, note, comparison.group_of)
    return table.without_empty_columns()


def _measured(run: Run, metric: str) -> Cell:
    """Return the newest value of a metric, with its interval if the evaluation has one."""
    value, low, high = (run.last(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None or low is None or high is None:
        return number(value, metric_text)
    return Cell(format_estimate(value, (low, high)), value)


def speed(comparison: Comparison) -> Table:
    """Return how fast the runs were and what they took."""
    rows = []
    for name, run in zip(comparison.names, comparison.runs, strict=True):
        elapsed, flops = axis_values(run, "seconds"), axis_values(run, "flops")
        rows.append(
            [
                text(name),
                number(run.median("perf/tokens_per_s"), ",.0f"),
                number(run.median("perf/mfu"), ".1%"),
                number(run.median("perf/step_time_s"), lambda seconds: f"{1000 * seconds:,.1f} ms"),
                number(run.most("perf/memory_gb"), ".2f"),
                number(run.most("perf/device_memory_peak_gb"), ".2f"),
                number(run.first("perf/startup_time_s"), duration),
                number(run.first("perf/compile_time_s"), duration),
                number(float(elapsed[-1]) if elapsed is not None else None, duration),
                number(float(flops[-1]) if flops is not None else None, scientific),
            ]
        )
    columns = [
        "run",
        "tokens/s",
        "MFU",
        "step time",
        "memory GB",
        "device GB",
        "start-up",
        "compile",
        "training",
        "FLOPs",
    ]
    if all(not cell.text for row in rows for cell in row[1:]):
        return Table("Speed", [], [])
    note = (
        "Medians over all steps; memory: the most after a step, of rank 0; start-up: from the command to the end of "
        "the first step; training: without start-up and pauses."
    )
    return Table("Speed", columns, rows, note, comparison.group_of).without_empty_columns()


def seeds(comparison: Comparison, measured: str | None = None) -> list[Table]:
    """Return a table per measured value, or only that of `measured`: means over seeds, differences from the first."""
    tables = []
    for name, values in comparison.measured().items():
        if measured not in (None, name):
            continue
        of_groups = comparison.counted(values)
        baseline = baseline_of(of_groups)
        shown = [
            number
            for number, group in enumerate(comparison.groups)
            if any(values[index] is not None for index in group.members)  # others do not measure it
        ]
        rows = [
            _seed_row(comparison.groups[number].name, of_groups[number], of_groups[baseline], number == baseline)
            for number in shown
        ]
        columns = ["group", "n", "mean", "spread", "95 % interval", "difference", "its 95 % interval"]
        note = f"Not counted: {'; '.join(comparison.excluded)}." if comparison.excluded else ""
        tables.append(Table(name, columns, rows, note, shown).without_empty_columns())
    return tables


def _seed_row(name: str, values: list[float], baseline: list[float], is_baseline: bool) -> list[Cell]:
    mean = statistics.estimate(values)
    change = None if is_baseline else statistics.difference(values, baseline)
    interval = mean.interval if mean else None
    change_interval = change.interval if change else None
    return [
        text(name),
        number(mean.n if mean else 0, "d"),
        number(mean.mean if mean else None, metric_text),
        number(mean.spread if mean else None, metric_text),
        Cell(format_interval(interval), interval[0] if interval else None),
        number(change.value if change else None, lambda value: f"{'+' if value >= 0 else ''}{metric_text(value)}"),
        Cell(format_interval(change_interval), change_interval[0] if change_interval else None),
    ]


def differences(comparison: Comparison) -> Table:
    """Return the keys whose values differ: a column per run; of many runs a row."""
    keys, values = comparison.differing, comparison.values
    note = "Keys that are equal in all runs are left out." if keys else "The configurations are equal."
    if len(comparison.runs) > MANY_RUNS:
        rows = [
            [text(name), *[text(each.get(key, "")) for key in keys]]
            for name, each in zip(comparison.names, values, strict=True)
        ]
        return Table("Configuration", ["run", *keys], rows if keys else [], note, comparison.group_of)
    rows = [[text(key), *[text(each.get(key, "")) for each in values]] for key in keys]
    return Table("Configuration", ["key", *comparison.names], rows, note)
