"""Which checkpoint a run continues from, and in which run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from gpt2x import checkpoint
from gpt2x.config import TrainConfig
from gpt2x.config.keys import REPLACED, defaults, flatten, leaves, spell
from gpt2x.errors import UserError
from gpt2x.runtime.appended import set_aside
from gpt2x.runtime.files import write_durably
from gpt2x.runtime.hub import names_repository
from gpt2x.tracking import jsonl
from gpt2x.train.records import KEY as RECORDS
from gpt2x.train.records import METRICS
from gpt2x.train.stored import check_training


@dataclass(frozen=True)
class Resumption:
    """A verified checkpoint, and the run directory that is written to."""

    saved: checkpoint.Checkpoint
    run_dir: Path
    differences: list[str]


def differences(config: TrainConfig, stored: dict[str, Any]) -> list[str]:
    """Return 'key: stored -> now' for every key whose change makes the continuation a different run.

    Values are compared whole. A key that the stored configuration lacks, since its version did not have it, compares
    as its default; one that this version has replaced is left out.
    """
    now, then = values_now_and_then(config, stored)
    for key in keys_that_may_be_omitted(config, now, then):
        then[key] = now[key]
    facts = {name: leaf.facts for name, leaf in leaves(type(config)).items()}
    return [
        f"{key}: {spell(then.get(key))} -> {spell(now.get(key))}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not (key in facts and facts[key].effect.may_change_on_resume)
    ]


def values_now_and_then(config: TrainConfig, stored: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values of a configuration and of a stored one, by the keys of this version."""
    root = type(config)
    then = defaults(root) | flatten(stored, root)
    then = {key: value for key, value in then.items() if key not in REPLACED}
    for key, value in then.items():  # older versions stored paths with ~
        if key in leaves(root) and leaves(root)[key].facts.is_path and isinstance(value, str):
            then[key] = os.path.expanduser(value)
    return flatten(asdict(config), root), then


COMPARED = ("trainer.best_metric", "trainer.max_eval_rows")  # what the values of two validations have to share


def best_is_of_other_rows(config: TrainConfig, stored: dict[str, Any]) -> str:
    """Return why the best value of a stored run compares with none of this one, or "" if it does."""
    old = flatten(stored, type(config)).get("trainer.max_eval_batches")
    if old is not None:  # of an older version
        return f"trainer.max_eval_batches={old}, which counted micro batches"
    now, then = values_now_and_then(config, stored)
    changed = [key for key in COMPARED if now[key] != then[key]]
    return ", ".join(f"{key}={spell(then[key])}, now {spell(now[key])}" for key in changed)


def keys_that_may_be_omitted(config: TrainConfig, now: dict[str, Any], then: dict[str, Any]) -> Iterator[str]:
    """Yield the keys that a resumed run need not repeat, or that the tokenizer or the data decide."""
    if now["load"] is None:
        yield "load"
    if not now["adapters"]:
        yield "adapters"
    for key in ("model.vocab_size", "model.labels"):
        if now[key] is None or then.get(key) is None:
            yield key
    if config.model.has_unnamed_labels:  # the data have named them
        yield "model.labels"
    names = [str(values.get("load")).partition("@")[0] for values in (now, then)]
    if names[0] == names[1] and names_repository(names[0]):  # the stored one has the commit
        yield "load"
    if now["tokenizer.extend"]:
        yield "model.vocab_size"
    if now["lora.rank"] is None and then.get("lora.rank") is None:  # no adapters, so their other keys have no effect
        yield from (key for key in now if key.startswith("lora."))


def find_resumption(config: TrainConfig, new_run_dir: Path, *, verify: bool = True) -> Resumption:
    """Return the checkpoint that `resume=` names.

    `auto` is the newest checkpoint under paths.outputs of a run with this configuration, which continues in that run's
    directory. A directory is the checkpoint itself, or the run whose newest checkpoint it is. It continues in a new run
    directory, so that nothing is overwritten that the old run wrote later.

    Raises:
        UserError: there is nothing to resume, or the checkpoint is damaged, has no optimizer states, or was written by
            a different model.
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
    if verify:
        saved.verify()
    if "optimizer" not in saved.groups():
        raise UserError(
            f"resume={config.resume}: {path} has weights but no optimizer states, so no run can continue from it; "
            f"start a new run from it with load={path}."
        )
    check_training(saved)
    changes = differences(config, saved.run_config)
    wrong = [line for line in changes if line.startswith(("model.", "lora.", "trainer.frozen"))]
    if wrong:
        raise UserError(
            f"resume={config.resume}: {path} was written by a different model or trains different tensors "
            f"({'; '.join(wrong)}); use the checkpoint's options, or start a new run with load={path}."
        )
    return Resumption(saved, run_dir, changes)


def newest_checkpoint(config: TrainConfig) -> Path:
    """Return the newest checkpoint of a run with this configuration.

    Raises:
        UserError: no run with this configuration has a checkpoint; the nearest one and its differences are named.
    """
    root = Path(config.paths.outputs).expanduser() / config.task.name
    candidates = [
        (checkpoints[-1].stat().st_mtime, checkpoints[-1])
        for run in {path.parent for path in root.rglob("checkpoints") if path.is_dir()}
        if (checkpoints := checkpoint.list_checkpoints(run))
    ]
    nearest: list[str] = []
    for _, path in sorted(candidates, reverse=True):
        changes = differences(config, yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
        if not changes:
            return path
        nearest = nearest or [f"{path.parent.parent} differs in {'; '.join(changes[:5])}"]
    raise UserError(
        f"resume=auto: there is nothing to resume; no run under {root} with this configuration has a checkpoint"
        + (f" ({nearest[0]})" if nearest else "")
        + "; drop resume to start a new run, or give resume=CHECKPOINT_DIRECTORY."
    )


def copy_history(resumption: Resumption) -> None:
    """Copy the old run's lines of metrics.jsonl, up to the checkpoint, into a new run.

    Raises:
        UserError: they cannot be read or written.
    """
    old_run, new_run = resumption.saved.path.parent.parent.absolute(), resumption.run_dir.absolute()
    source, target = old_run / METRICS, new_run / METRICS
    if not source.is_file() or old_run == new_run:
        return
    state = resumption.saved.loop_state
    try:
        cut = jsonl.cut_at(source.read_bytes(), state["step"], state.get(RECORDS, {}).get(METRICS))
        if target.exists() and (content := target.read_bytes()) != cut.kept:
            set_aside(target, content)
        write_durably(target, cut.kept)
    except OSError as error:
        raise UserError(
            f"cannot copy {source} to {target} ({error.strerror or error}). Change the permissions, or free space."
        ) from error
