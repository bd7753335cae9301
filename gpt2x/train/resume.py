"""Which checkpoint a run continues from, and in which run directory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt2x import checkpoint
from gpt2x.config import TrainConfig
from gpt2x.config.keys import REPLACED, defaults, flatten, leaves, spell
from gpt2x.errors import UserError
from gpt2x.runtime.appended import set_aside
from gpt2x.runtime.console import console
from gpt2x.runtime.files import write_durably
from gpt2x.runtime.hub import names_repository
from gpt2x.tracking import jsonl
from gpt2x.train.records import KEY as RECORDS
from gpt2x.train.records import METRICS
from gpt2x.train.stored import check_training


@dataclass(frozen=True)
class Resumption:
    """A checkpoint to continue from, and the run directory that is written to.

    Attributes:
        saved: the checkpoint.
        run_dir: where the run writes.
        differences: keys whose change makes the continuation a different run.
        is_newest: it is the newest of a run, and another one takes its place if it is damaged; else it was named.
        newer: damaged checkpoints of `run_dir` that are set aside before the run continues.
    """

    saved: checkpoint.Checkpoint
    run_dir: Path
    differences: list[str]
    is_newest: bool = False
    newer: tuple[Path, ...] = ()


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


def find_resumption(config: TrainConfig, run_dir: Path, damaged: dict[Path, str] | None = None) -> Resumption:
    """Return the checkpoint that `resume=` names.

    `auto` is the newest checkpoint of `run_dir` (`gpt2x.train.run_search` has chosen it), where the run continues. A
    directory is the checkpoint itself, or the run whose newest checkpoint it is; it continues in `run_dir`, a new one,
    so that nothing is overwritten that the old run wrote later. Damaged checkpoints of a run are left out.

    Args:
        config: with `resume`.
        run_dir: of the run that begins or continues.
        damaged: checkpoints of a run that are known to be damaged, and how; more are added.

    Raises:
        UserError: there is nothing to resume, or the checkpoint is damaged, has no optimizer states, or was written by
            a different model.
    """
    assert config.resume is not None
    damaged = {} if damaged is None else damaged
    path = run_dir if config.resume == "auto" else Path(config.resume).expanduser()
    steps = checkpoint.step_directories(path)
    saved = newest_intact(path, steps, damaged, config.resume) if steps else checkpoint.open_checkpoint(path)
    if "optimizer" not in saved.groups():
        raise UserError(
            f"resume={config.resume}: {saved.path} has weights but no optimizer states, so no run can continue from "
            f"it; start a new run from it with load={saved.path}."
        )
    check_training(saved)
    changes = differences(config, saved.run_config)
    wrong = [line for line in changes if line.startswith(("model.", "lora.", "trainer.frozen"))]
    if wrong:
        raise UserError(
            f"resume={config.resume}: {saved.path} was written by a different model or trains different tensors "
            f"({'; '.join(wrong)}); use the checkpoint's options, or start a new run with load={saved.path}."
        )
    newer = steps[steps.index(saved.path) + 1 :] if config.resume == "auto" else []
    return Resumption(saved, run_dir, changes, bool(steps), tuple(newer))


def newest_intact(run_dir: Path, steps: list[Path], damaged: dict[Path, str], resume: str) -> checkpoint.Checkpoint:
    """Return the newest checkpoint of a run that is not damaged, as far as that is known without reading tensors.

    Args:
        run_dir: of the run.
        steps: its checkpoints, oldest first.
        damaged: those that are known to be damaged, and how; more are added.
        resume: what was typed, for the message.

    Raises:
        UserError: all are damaged.
    """
    for path in reversed(steps):
        if path not in damaged:
            try:
                saved = checkpoint.open_checkpoint(path)
                saved.verify_small_files()
                return saved
            except UserError as error:
                damaged[path] = str(error)
    faults = "".join(f"\n  {fault}" for fault in damaged.values())
    raise UserError(
        f"resume={resume}: no checkpoint of {run_dir} is intact, so no run continues from there; nothing was changed. "
        f"Is the disk readable? Copy one back, or move {run_dir}/checkpoints away to start again from step 0.{faults}"
    )


def set_aside_newer(resumption: Resumption) -> None:
    """Rename the damaged checkpoints after the one from which the run continues in its own directory."""
    for path in resumption.newer:
        aside = checkpoint.set_aside(path)
        console.notice(
            f"{path.name} is set aside as {aside}, which is deleted when the run has written that step again"
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
        cut = jsonl.cut_at(source.read_bytes(), recorded_step(state), state.get(RECORDS, {}).get(METRICS))
        if target.exists() and (content := target.read_bytes()) != cut.kept:
            set_aside(target, content)
        write_durably(target, cut.kept)
    except OSError as error:
        raise UserError(
            f"cannot copy {source} to {target} ({error.strerror or error}). Change the permissions, or free space."
        ) from error


def recorded_step(loop_state: Mapping[str, Any]) -> int:
    """Return the last step of a checkpoint whose metrics and samples are complete."""
    return loop_state["step"] - bool(loop_state.get("open_hook"))
