"""The run directory of a command: which one it is, and that nobody else writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gpt2x.config import CommonConfig, TrainConfig
from gpt2x.errors import require
from gpt2x.runtime.files import remove_empty
from gpt2x.runtime.owner import owning
from gpt2x.runtime.role import Role

LOGGED = ("train", "evaluate")  # the commands whose run directory has command.txt and run.log


@contextmanager
def owned_run(name: str, config: CommonConfig, role: Role, new_run_dir: Path) -> Iterator[tuple[CommonConfig, Path]]:
    """Own the run directory of a command until the block ends.

    The owner is the process that decides for the run: the launcher, the only process, rank 0 under msrun; of several
    nodes that of node 0. The others belong to it.

    Args:
        name: the command.
        config: its configuration.
        role: of this process.
        new_run_dir: as Hydra has named it.

    Yields:
        The configuration and the run directory, which `resume=auto` may change.

    Raises:
        UserError: it belongs to another process, or holds a different run.
    """
    is_owner = name in LOGGED and role.decides and config.launch.node_rank == 0
    if isinstance(config, TrainConfig) and config.resume == "auto" and role.decides:
        from gpt2x.train.run_search import continued_run

        with continued_run(config, new_run_dir, is_named=role.has_named_run_dir, is_owner=is_owner) as (
            config,
            run_dir,
        ):
            if run_dir != new_run_dir:
                remove_empty(new_run_dir)
            yield config, run_dir
    elif is_owner:
        with owning(new_run_dir):
            if isinstance(config, TrainConfig):
                require_new(config, new_run_dir)
            yield config, new_run_dir
    else:
        yield config, new_run_dir


def require_new(config: TrainConfig, run_dir: Path) -> None:
    """Check that a training begins in a directory without a run.

    Raises:
        UserError: it would write over one.
    """
    from gpt2x.checkpoint import step_directories

    is_there = (run_dir / "metrics.jsonl").exists() or bool(step_directories(run_dir))
    require(
        not is_there,
        f"hydra.run.dir={run_dir} holds a run already, and nothing is overwritten; resume=auto continues it, or give a "
        "new directory.",
    )
