"""Which checkpoint a run continues from, and in which directory."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING

from gpt2x import checkpoint
from gpt2x.config import TrainConfig
from gpt2x.errors import UserError
from gpt2x.runtime import launch
from gpt2x.tracking import jsonl
from gpt2x.tracking.tracker import flatten

# Keys and groups that may change between a run and its continuation without changing a step of it: a layout changes
# how a step is computed, its result by rounding alone.
FREE_KEYS = ("resume", "paths", "launch", "parallel", "plan", "num_devices", "tracker", "generation", "hardware",
             "model.pad_vocab_multiple", "trainer.micro_batch_size", "trainer.stop_after_steps",
             "trainer.log_every_steps", "trainer.eval_every_steps", "trainer.sample_every_steps",
             "trainer.sample_prompts", "trainer.max_eval_batches", "trainer.checkpoint_every_steps",
             "trainer.keep_last", "trainer.keep_best", "trainer.early_stopping_patience")  # fmt: skip
BOUND_KEYS = ("hardware.precision",)  # the exceptions: other numbers, and another loss scale

# What a run had of keys that its version did not know
DEFAULTS = {key: value for key, value in flatten(asdict(TrainConfig())).items() if value != MISSING}


@dataclass(frozen=True)
class Resumption:
    """A verified checkpoint, and the run directory that is written to."""

    saved: checkpoint.Checkpoint
    run_dir: Path
    differences: list[str]


def differences(config: TrainConfig, stored: dict[str, Any]) -> list[str]:
    """'key: stored -> now' for every key whose change makes the continuation another run."""
    now, then = flatten(asdict(config)), DEFAULTS | flatten(stored)
    for key, value in (("load", config.load), ("adapters", config.adapters or None)):
        if value is None:
            then[key] = now[key]  # where the run once started from need not be said again
    for key in ("model.vocab_size", "model.labels"):
        if "null" in (now[key], then.get(key, "null")):
            then[key] = now[key]  # the tokenizer decides, or the data
    if now["tokenizer.extend"] == "true":  # so does it here
        then["model.vocab_size"] = now["model.vocab_size"]
    if now["lora.rank"] == then.get("lora.rank", "null") == "null":  # nothing is adapted
        now, then = ({key: v for key, v in values.items() if not key.startswith("lora.")} for values in (now, then))
    return [
        f"{key}: {then.get(key)} -> {now.get(key)}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not is_free(key)
    ]


def is_free(key: str) -> bool:
    """Whether a key may change without changing a step."""
    return key not in BOUND_KEYS and any(key == free or key.startswith(f"{free}.") for free in FREE_KEYS)


def find_resumption(config: TrainConfig, new_run_dir: Path) -> Resumption:
    """The checkpoint that `resume=` stands for.

    `auto`: the newest checkpoint under paths.outputs of a run with this configuration; it goes on in that run's
    directory. A directory: that checkpoint; it goes on in a new run directory, so nothing that the old run did later
    is overwritten.

    Raises:
        UserError: when there is nothing to resume, or the checkpoint is damaged, holds no optimizer, or is of
            another model.
    """
    assert config.resume is not None
    if config.resume == "auto":
        path = newest_checkpoint(config)
        run_dir = path.parent.parent
    else:
        path = Path(config.resume).expanduser()
        newest = checkpoint.list_checkpoints(path)
        path, run_dir = (newest[-1] if newest else path), new_run_dir
    saved = checkpoint.open_checkpoint(path)
    if launch.is_deciding():  # the others rely on it
        saved.verify()
    if "optimizer" not in saved.groups():
        raise UserError(
            f"resume={config.resume}: {path} holds weights but no optimizer state, so no run can go on from it; "
            f"start a new run from it with load={path}"
        )
    found = differences(config, saved.run_config)
    wrong = [line for line in found if line.startswith(("model.", "lora.", "trainer.frozen"))]
    if wrong:
        raise UserError(
            f"resume={config.resume}: {path} is of another model, or trains other tensors ({'; '.join(wrong)}); give "
            f"its options, or start a new run from its weights with load={path}"
        )
    return Resumption(saved, run_dir, found)


def newest_checkpoint(config: TrainConfig) -> Path:
    """The newest checkpoint of a run with this configuration."""
    root = Path(config.paths.outputs).expanduser() / config.task.name
    candidates = [
        (found[-1].stat().st_mtime, found[-1])
        for run in {path.parent for path in root.rglob("checkpoints") if path.is_dir()}
        if (found := checkpoint.list_checkpoints(run))
    ]
    nearest: list[str] = []
    for _, path in sorted(candidates, reverse=True):
        unlike = differences(config, yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
        if not unlike:
            return path
        nearest = nearest or [f"{path.parent.parent} differs in {'; '.join(unlike[:5])}"]
    raise UserError(
        f"resume=auto: nothing to resume, since no run under {root} with this configuration has a checkpoint"
        + (f" ({nearest[0]})" if nearest else "")
        + "; drop resume to start a new run, or give resume=CHECKPOINT_DIRECTORY"
    )


def copy_history(resumption: Resumption) -> None:
    """Begin a new run's metrics.jsonl with the old run's lines up to the checkpoint."""
    old_run, new_run = resumption.saved.path.parent.parent.absolute(), resumption.run_dir.absolute()
    source = old_run / "metrics.jsonl"
    if source.is_file() and old_run != new_run:
        shutil.copyfile(source, new_run / "metrics.jsonl")
        log = jsonl.MetricsLog(new_run / "metrics.jsonl")
        log.rewind(resumption.saved.loop_state["step"])
        log.close()
        for aside in new_run.glob("metrics.*.jsonl"):
            aside.unlink()
