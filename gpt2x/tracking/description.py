"""What a command tells a tracker about its run: names that tell runs apart, origin, data sets."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from gpt2x.config import DatasetConfig, TrackedConfig
from gpt2x.runtime.jobs import Job, read_command, read_job, typed_command
from gpt2x.tracking.provenance import run_tags
from gpt2x.tracking.tracker import DataInput, RunInfo

MAX_NAME_CHARS = 120
MAX_SPELLED_CHARS = 40  # of one value within a name
# what the name has already, or what does not change the run
UNNAMED = ("model", "dataset", "resume", "paths", "tracker", "launch", "hydra", "plan", "output", "hparams_search")


def describe_run(
    config: TrackedConfig,
    run_dir: Path,
    *,
    experiment: str,
    name: str,
    named: Sequence[str] = (),
    data_hash: str,
    tags: Mapping[str, str] | None = None,
    inputs: Sequence[DataInput] = (),
) -> RunInfo:
    """Return a run as a tracker shows it.

    Args:
        config: resolved.
        run_dir: the run directory; its `job.json` and `command.txt` are read, if there are any.
        experiment: the group of runs if `tracker.experiment` is null.
        name: model and data set; the overrides are appended.
        named: further keys that `name` shows.
        data_hash: fingerprint of the data.
        tags: further ones.
        inputs: the data sets that the run reads.
    """
    job, command = read_job(run_dir), read_command(run_dir) or typed_command()
    chosen = config.tracker.run_name
    if job is None:
        run_name = chosen or joined(name, spelled(typed_overrides(command, named)))
    else:
        run_name = joined(chosen or "", spelled(job.varied) or f"job {job.number}")
    origin = {"command": command, "run_dir": str(run_dir.absolute())}
    return RunInfo(
        experiment=config.tracker.experiment or experiment,
        run_name=run_name,
        run_dir=run_dir,
        params=asdict(config),
        tags=run_tags(config.hardware, layout=config.parallel.name, data_hash=data_hash) | origin | dict(tags or {}),
        sweep_dir=Path(job.sweep_dir) if job else None,
        sweep_name=sweep_name(Path(job.sweep_dir), job, chosen) if job else "",
        inputs=inputs,
    )


def data_source(dataset: DatasetConfig, split: str) -> str:
    """Return where the text of a split (`train` or `val`) comes from: a path, an address, or the name of a corpus."""
    path = (dataset.train_path if split == "train" else dataset.val_path) or dataset.path
    return str(Path(path).expanduser().absolute()) if path else dataset.url or dataset.corpus


def sweep_name(sweep_dir: Path, job: Job | None, chosen: str | None = None) -> str:
    """Return the name of a sweep's parent run: its directory, and the keys that its jobs vary.

    Args:
        sweep_dir: directory of the multirun.
        job: any of its jobs.
        chosen: `tracker.run_name`.
    """
    keys = [override.partition("=")[0].lstrip("+~") for override in job.varied] if job else []
    return joined(chosen or "", sweep_dir.name) + (f": {', '.join(keys)}" if keys else "")


def joined(prefix: str, overrides: str) -> str:
    """Return both, whatever of them there is, as long as a list can show it."""
    text = " ".join(filter(None, (prefix, overrides)))
    return text if len(text) <= MAX_NAME_CHARS else text[: MAX_NAME_CHARS - 1] + "…"


def spelled(overrides: Iterable[str]) -> str:
    """Return overrides as a name, short enough for the lists of MLflow: of keys the last parts, of paths the ends.

    A last part that two keys share is not enough, and these keys are whole.

    Example:
        `["optimizer.learning_rate=0.001", "load=a/run_1/checkpoints/step_20"]` →
        `learning_rate=0.001 load=run_1/step_20`
    """
    pairs = [override.partition("=") for override in overrides]
    counts = Counter(_last(key) for key, _, _ in pairs)
    return " ".join(
        f"{_last(key) if counts[_last(key)] == 1 else key}{equals}{_short(value)}" for key, equals, value in pairs
    )


def typed_overrides(command: str, named: Sequence[str] = ()) -> list[str]:
    """Return the overrides in a command line that change the run beside its model and data set.

    Args:
        command: as typed.
        named: further keys that are left out.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that is not closed
        return []
    overrides = [word for word in words[1:] if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    keys = [each.lstrip("+~").partition("=")[0].partition("@")[0] for each in overrides]
    return [each for each, key in zip(overrides, keys, strict=True) if not (key in named or _is_unnamed(key))]


def source_name(command: str) -> str:
    """Return what a command line runs: `train.py`, or `gpt2x train`."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    names = [Path(word).name for word in words]
    for number, name in enumerate(names):
        if name == "gpt2x":
            return " ".join(names[number : number + 2])
        if name.endswith(".py"):
            return name
    return names[0] if names else ""


def _is_unnamed(key: str) -> bool:
    """Return True for a key that a name leaves out; `model` stands for the option, not for the keys of the group."""
    group = key.partition(".")[0]
    return key in UNNAMED or (group in UNNAMED and group not in ("model", "dataset"))


def _last(key: str) -> str:
    return key if key.startswith("~") else key.lstrip("+").rpartition(".")[2]


def _short(value: str) -> str:
    if "/" in value and not value.startswith(("[", "{", "'", '"')):
        parts = [part for part in value.rstrip("/").split("/") if part not in ("", "checkpoints")]
        value = "/".join(parts[-2:])
    return value if len(value) <= MAX_SPELLED_CHARS else value[: MAX_SPELLED_CHARS - 1] + "…"
