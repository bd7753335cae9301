"""The checkpoints of a run: when one is complete, what is deleted and copied, and what a failure means."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gpt2x import checkpoint
from gpt2x.checkpoint import CheckpointWriter, Content
from gpt2x.config import TrainConfig
from gpt2x.errors import UserError
from gpt2x.parallel.agreement import from_all
from gpt2x.runtime import heartbeat
from gpt2x.runtime.console import console
from gpt2x.runtime.files import new_directory, write_durably
from gpt2x.tracking import Tracker
from gpt2x.train.records import KEY as RECORDS
from gpt2x.train.records import METRICS, SAMPLES

if TYPE_CHECKING:
    from gpt2x.train.trainer import Trainer

FOLDER = "checkpoints"
LONG_S = 5.0  # a wait for the save before that is said
COPIED = (METRICS, SAMPLES, "config.yaml")  # beside the checkpoints


class Saving:
    """Writes the checkpoints of a run; all ranks call its methods at the same steps.

    As a context, it waits for the last checkpoint at the end. After an error, each process only ends what it began.

    Attributes:
        failure: why the last checkpoint does not exist; "" if it does.
        stall_s: how long training has waited for checkpoints since the last `take_stall_s`.

    Args:
        trainer: whose state is saved.
        tracker: is sent the paths of the checkpoints that exist.
    """

    def __init__(self, trainer: Trainer, tracker: Tracker):
        options, mesh = trainer.config.trainer, trainer.mesh
        self.trainer, self.tracker = trainer, tracker
        self.failure, self.stall_s = "", 0.0
        self.tags: dict[str, str] = {}  # of the save that is not complete yet
        self.writer = CheckpointWriter(
            rank=mesh.rank,
            world_size=mesh.size,
            exchange=partial(from_all, mesh),
            retries=options.checkpoint_retries,
            retry_s=options.checkpoint_retry_s,
        )

    def save(self, *, is_last: bool = False) -> None:
        """Write `checkpoints/step_N`. A copy of the values is written beside training, unless this is the last update.

        Args:
            is_last: return when it is complete, or has failed.

        Raises:
            UserError: there is no checkpoint at all, and the last one could not be written.
        """
        self.wait()
        started = time.perf_counter()
        trainer, state = self.trainer, self.trainer.state
        decision, options, mesh = trainer.decision, trainer.config.trainer, trainer.mesh
        loop_state = asdict(state)
        if mesh.is_main:
            loop_state[RECORDS] = trainer.records.marks()
            self.tags = checkpoint_tags(trainer)
        in_background = options.checkpoint_async and not is_last
        self.writer.save(
            trainer.run_dir / FOLDER / f"step_{state.step}",
            trainer.tensors.slices(),
            Content(
                decision.model,
                asdict(decision.config),
                loop_state,
                decision.data.save_tokenizer,
                decision.special_ids.as_plain(),
            ),
            copies=in_background,
            before=trainer.records.sync,
            after=partial(self.tidy, state.step, state.best_step if options.keep_best else None),
        )
        self.stall_s += time.perf_counter() - started
        if not in_background:
            self.wait(is_last=is_last)

    def wait(self, *, is_last: bool = False) -> None:
        """Wait for the checkpoint that is being written, and say what has become of it.

        Raises:
            UserError: it could not be written, and there is no other one; but not if `is_last`.
        """
        heartbeat.does("waiting for the checkpoint")
        outcome = self.writer.wait()
        if outcome is None:
            return
        self.stall_s += outcome.waited_s
        self.failure = outcome.failure
        name = outcome.directory.name
        if not outcome.failure:
            if self.trainer.mesh.is_main:
                self.tracker.set_tags(self.tags)
            if outcome.waited_s > LONG_S and not is_last and self.trainer.config.trainer.checkpoint_async:
                console.notice(
                    f"training waited {outcome.waited_s:.0f} s for {name}, which was still being written; save less "
                    "often (trainer.checkpoint_every_steps) or to a faster disk"
                )
            return
        if is_last:
            return  # `require_saved` ends the run with it, after all else is done
        if not self.trainer.mesh.agree(bool(self.newest())):
            raise UserError(f"{outcome.failure} There is no earlier checkpoint, so the run ends here.")
        console.warn(f"{name} is LOST: {outcome.failure} Training continues; the newest checkpoint is {self.newest()}")

    def newest(self) -> Path | None:
        """Return the newest checkpoint that this run could continue from."""
        if complete := checkpoint.list_checkpoints(self.trainer.run_dir):
            return complete[-1]
        resumption = self.trainer.decision.source.resumption
        return resumption.saved.path if resumption else None

    def take_stall_s(self) -> float:
        """Return how long training has waited for checkpoints since the last call."""
        seconds, self.stall_s = self.stall_s, 0.0
        return seconds

    def require_saved(self) -> None:
        """Check that the last checkpoint exists, at the end of the run.

        Raises:
            UserError: it does not.
        """
        if self.failure:
            raise UserError(
                f"the last checkpoint is lost: {self.failure} The newest is {self.newest() or 'none'}. Once there is "
                "space, resume=auto computes the updates after it again."
            )

    def tidy(self, step: int, best: int | None) -> None:
        """Delete what keep_last and keep_best do not keep, and copy the checkpoint; failures are said only."""
        options, run_dir = self.trainer.config.trainer, self.trainer.run_dir
        try:
            checkpoint.prune(run_dir, options.keep_last, best, step)
        except OSError as error:
            console.warn(f"old checkpoints of {run_dir} cannot be deleted: {error.strerror or error}")
        target = copy_directory(self.trainer.config, run_dir)
        if target is None:
            return
        try:
            copy_checkpoint(run_dir / FOLDER / f"step_{step}", target)
            checkpoint.prune(target, options.keep_last, best, step)
        except (OSError, UserError) as error:
            console.warn(f"trainer.checkpoint_copy: step_{step} is not copied: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.wait(is_last=True)
        else:
            self.writer.close()


def copy_directory(config: TrainConfig, run_dir: Path) -> Path | None:
    """Return the run directory below trainer.checkpoint_copy, as below paths.outputs; None if there are no copies.

    A run directory that is not below paths.outputs has its whole path there, so that no two runs share one.
    """
    if config.trainer.checkpoint_copy is None:
        return None
    run_dir, outputs = run_dir.absolute(), Path(config.paths.outputs).expanduser().absolute()
    inner = run_dir.relative_to(outputs if run_dir.is_relative_to(outputs) else run_dir.anchor)
    return Path(config.trainer.checkpoint_copy).expanduser().absolute() / inner


def copy_checkpoint(source: Path, run_dir: Path) -> None:
    """Copy a checkpoint below a different run directory, completely or not at all, with the run's small files.

    The copy is hashed before it gets its name.

    Raises:
        OSError: something cannot be read or written.
        UserError: likewise, or the copy differs.
    """
    with new_directory(run_dir / FOLDER / source.name, key="trainer.checkpoint_copy") as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
        checkpoint.open_checkpoint(temporary).verify()
    for name in COPIED:
        if (path := source.parent.parent / name).is_file():
            write_durably(run_dir / name, path.read_bytes())


def checkpoint_tags(trainer: Trainer) -> dict[str, str]:
    """Return the paths of the newest checkpoint and, if it is kept, of the best one."""
    folder = (trainer.run_dir / FOLDER).absolute()
    steps = {"newest": trainer.state.step}
    if trainer.config.trainer.keep_best and trainer.state.best_value is not None:
        steps["best"] = trainer.state.best_step
    return {f"checkpoint.{name}": str(folder / f"step_{step}") for name, step in steps.items()}
