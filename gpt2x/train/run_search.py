"""Which run directory `resume=auto` continues, and whether there is anything in it to continue.

A run is recognised by its configuration: that of its newest checkpoint which can be opened, else its `config.yaml`. So
a run is recognised from its first moment on, and whatever happened to its checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gpt2x import checkpoint
from gpt2x.config import TrainConfig
from gpt2x.config.files import to_yaml
from gpt2x.config.rules import validate_train
from gpt2x.errors import UserError
from gpt2x.runtime.console import console
from gpt2x.runtime.files import remove_empty, write_durably
from gpt2x.runtime.owner import OwnedError, living_owner, owning
from gpt2x.runtime.yaml_text import read_yaml
from gpt2x.train.resume import differences

CONFIG = "config.yaml"
REMAINS = (".owner.", f".{CONFIG}.")  # how the names begin of what a start writes before its configuration
CLAIM_S = 10.0  # a directory may have no owner yet
CHOICE_WAIT_S = 120.0  # for others that choose at the same time; reading thousands of runs takes seconds


class Choice(NamedTuple):
    """A run directory; if it has no checkpoint, what is missing and what begins there, in words."""

    run_dir: Path
    missing: str
    begins: str


@contextmanager
def continued_run(
    config: TrainConfig, new_run_dir: Path, *, is_named: bool, is_owner: bool = True
) -> Iterator[tuple[TrainConfig, Path]]:
    """Own the run directory that `resume=auto` continues or begins, until the block ends.

    Of several processes that start in one instant, one chooses at a time: the first begins a run, and the others see
    that it is alive. A run that begins leaves its configuration at once, so that they see which one it is; if it is
    rejected, the file is removed again.

    Args:
        config: with `resume=auto`.
        new_run_dir: of a run that begins.
        is_named: the user has named the directory, which is then the run, wherever others are.
        is_owner: False on a further node, which belongs to the owner on node 0.

    Yields:
        The configuration, with `resume=None` if there is no checkpoint to continue from; and the run directory.

    Raises:
        OwnedError: the run is alive.
        UserError: the directory that was named holds a different run, or the run cannot begin.
    """
    root = Path(config.paths.outputs).expanduser() / config.task.name
    with ExitStack() as stack:
        with owning(root, CHOICE_WAIT_S) if is_owner else nullcontext():
            if is_owner:
                remove_remains(root, new_run_dir)
            run_dir, missing, begins = choose(config, root, new_run_dir, is_named)
            try:
                stack.enter_context(owning(run_dir) if is_owner else nullcontext())
            except OwnedError as error:
                raise OwnedError(f"resume=auto: the run is alive: {error}") from None
            is_beginning = not checkpoint.step_directories(run_dir)
            if is_beginning:
                config = replace(config, resume=None)
                check_beginning(config, missing)
                console.notice(f"resume=auto: {missing}; {begins}")
            is_first = is_owner and not (run_dir / CONFIG).exists()
            if is_first:
                write_config(config, run_dir)
        try:
            yield config, run_dir
        except UserError:
            if is_first and not (run_dir / "command.txt").exists():
                (run_dir / CONFIG).unlink(missing_ok=True)
            raise


def write_config(config: TrainConfig, run_dir: Path) -> None:
    """Leave the configuration of a run that begins.

    Raises:
        UserError: the disk rejects it.
    """
    try:
        write_durably(run_dir / CONFIG, to_yaml(config).encode())
    except OSError as error:
        raise UserError(
            f"cannot write {run_dir / CONFIG} ({error.strerror or error}). Free space, or give a different directory."
        ) from error


def choose(config: TrainConfig, root: Path, new_run_dir: Path, is_named: bool) -> Choice:
    """Return the run directory that is continued, or in which a run begins.

    Raises:
        UserError: the directory that was named holds a different run.
    """
    if is_named and is_run(new_run_dir):
        stored = stored_config(new_run_dir)
        changes = differences(config, stored) if stored else []
        if changes:
            raise UserError(
                f"resume=auto: {new_run_dir} holds a run with a different configuration ({'; '.join(changes[:5])}); "
                f"give its values, or a new directory. resume={new_run_dir} continues it with other values in a new "
                "directory."
            )
        return Choice(new_run_dir, f"{new_run_dir} has no checkpoint yet", "the run starts again")
    newest, nearest = newest_match(config, root, new_run_dir)
    if is_named:
        elsewhere = f" ({newest} has the same configuration, and stays as it is)" if newest else ""
        return Choice(new_run_dir, f"no run in {new_run_dir}{elsewhere}", "it starts there")
    if newest:
        return Choice(newest, f"{newest} has no checkpoint yet", "the run starts again")
    return Choice(new_run_dir, f"no run with this configuration under {root}{nearest}", "a new one starts")


def newest_match(config: TrainConfig, root: Path, new_run_dir: Path) -> tuple[Path | None, str]:
    """Return the newest run with this configuration, or None and the nearest one with the keys that differ."""
    nearest, unreadable = "", []
    for run_dir in sorted(run_dirs(root), key=last_written, reverse=True):
        if run_dir == new_run_dir:
            continue
        stored = stored_config(run_dir)
        if stored is None:
            unreadable.append(run_dir)
            continue
        changes = differences(config, stored)
        if not changes:
            return run_dir, ""
        nearest = nearest or f" ({run_dir} differs in {'; '.join(changes[:5])})"
    if unreadable:
        console.warn(
            f"resume=auto leaves out {len(unreadable)} directories whose configuration cannot be read: "
            f"{', '.join(map(str, unreadable[:5]))}"
        )
    return None, nearest


def check_beginning(config: TrainConfig, missing: str) -> None:
    """Check that a run can begin, whose configuration would do to continue one.

    Raises:
        UserError: it needs weights to start from.
    """
    try:
        validate_train(config)
    except UserError as error:
        raise UserError(f"resume=auto: {missing}, and a new one cannot start: {error}") from None


def remove_remains(root: Path, new_run_dir: Path) -> None:
    """Remove the directories of starts that were killed before their configuration was there.

    A start that is alive has an owner; one that waits for its turn creates its directory again.
    """
    for folder, is_run_dir, folders, files in _walk(root):
        is_bare = not folders and all(name.startswith(REMAINS) for name in files)
        if is_run_dir or not is_bare or folder in (root, new_run_dir):
            continue
        with suppress(OSError):
            is_new = time.time() - folder.stat().st_mtime < CLAIM_S
            if not is_new and living_owner(folder) is None:
                for name in files:
                    (folder / name).unlink()
                remove_empty(folder)


def run_dirs(root: Path) -> Iterator[Path]:
    """Yield the run directories below `root`; what is in a run directory is none."""
    return (folder for folder, is_run_dir, _, _ in _walk(root) if is_run_dir)


def _walk(root: Path) -> Iterator[tuple[Path, bool, list[str], list[str]]]:
    """Yield each directory below `root`, whether it is a run's, its folders and its files; hidden ones are left out."""
    for folder, folders, files in os.walk(root):
        is_run_dir = CONFIG in files or "checkpoints" in folders
        yield Path(folder), is_run_dir, folders, files
        folders[:] = [] if is_run_dir else [name for name in folders if not name.startswith(".")]


def is_run(directory: Path) -> bool:
    """Return whether a directory is that of a run, however far it came."""
    return (directory / CONFIG).exists() or bool(checkpoint.step_directories(directory))


def last_written(run_dir: Path) -> float:
    """Return when a run last left a checkpoint, or began (unix seconds)."""
    newest = 0.0
    for path in (run_dir / CONFIG, *checkpoint.step_directories(run_dir)):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return newest


def stored_config(run_dir: Path) -> dict[str, Any] | None:
    """Return the configuration of a run as plain data; None if neither a checkpoint nor `config.yaml` can be read."""
    for path in reversed(checkpoint.step_directories(run_dir)):
        with suppress(UserError):
            return plain_config(checkpoint.open_checkpoint(path).run_config)
    with suppress(UserError):
        return plain_config(read_yaml(run_dir / CONFIG, fix=""))
    return None


def plain_config(stored: Any) -> dict[str, Any] | None:
    """Return what was read if it can be a configuration, else None."""
    is_config = isinstance(stored, dict) and all(isinstance(key, str) for key in stored)
    return stored if is_config and isinstance(stored.get("model"), dict) else None
