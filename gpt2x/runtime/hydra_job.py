"""What Hydra says of the job that runs."""

from __future__ import annotations

import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from gpt2x.runtime import launch


def is_multirun() -> bool:
    """Whether this process runs one job of Hydra's multirun after the other."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def remove_empty(run_dir: Path) -> None:
    """Take away the directory that Hydra makes for every job, and its parents, where nothing was written."""
    for directory in (run_dir, *run_dir.parents[:3]):
        if directory == Path.cwd() or directory in Path.cwd().parents:
            return
        try:
            directory.rmdir()
        except OSError:
            return


def output_dir() -> Path:
    """The run directory: the launcher's word in its processes, else what Hydra chose for this job."""
    return Path(os.environ.get(launch.RUN_DIR) or HydraConfig.get().runtime.output_dir)
