"""What each entry point runs; imports wait until then, so that a typing mistake is answered at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt2x.commands.hydra_entry import SweepJob
from gpt2x.config import TrainConfig
from gpt2x.config.layout import world_size
from gpt2x.config.rules import is_plan, require_devices
from gpt2x.errors import RunError
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.hydra_job import is_multirun
from gpt2x.runtime.interrupt import deliver_interrupts

MODULES = {"train": "gpt2x.train.run", "evaluate": "gpt2x.commands.evaluate", "predict": "gpt2x.commands.predict"}


def start(name: str, config: Any) -> None:
    """Run entry point `name`, in this process or in as many as the layout has.

    A job of a multirun gets a process of its own, since MindSpore cannot be set up twice in one.

    Raises:
        UserError: for anything the user can put right.
        RunError: a process that was started here failed; its error has been shown.
    """
    deliver_interrupts(signal.SIGINT, *([] if launch.is_launched() else [signal.SIGTERM]))
    if isinstance(config, TrainConfig) and is_plan(config):  # computes nothing, reads nothing
        from gpt2x.planner.report import show

        show(config)
        return
    if launch.worker_rank():
        console.silence()
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's own warnings: errors only; read when it is imported
    entry = import_module(MODULES[name])
    if launch.is_worker() or (world_size(config.parallel) == 1 and not is_multirun()):
        os.environ.update(launch.timeouts(config.launch, config.hardware.device_target))
        entry.run(config)
        return
    require_devices(config)
    run_dir = entry.prepare_launch(config).absolute()
    worker = [sys.executable, "-m", "gpt2x.commands.worker", name, str(launch.config_path(config, run_dir))]
    try:
        launch.launch(worker, config, run_dir)
    except KeyboardInterrupt:
        close_tracking(run_dir, "KILLED")
        raise
    except RunError:
        close_tracking(run_dir, "FAILED")
        raise
    finally:
        console.rich.show_cursor()  # which a bar that was cut off has hidden


def run_in_process(name: str, config: Any, run_dir: Path) -> None:
    """Run entry point `name` as a single process, here, writing to `run_dir`; may be called again and again.

    Raises:
        UserError: for anything the user can put right.
    """
    os.environ.setdefault("GLOG_v", "3")
    before = os.environ.get(launch.RUN_DIR)
    os.environ[launch.RUN_DIR] = str(run_dir)
    try:
        import_module(MODULES[name]).run(config)
    finally:
        if before is None:
            del os.environ[launch.RUN_DIR]
        else:
            os.environ[launch.RUN_DIR] = before


def compare(sweep_dir: Path, jobs: list[SweepJob]) -> None:
    """Put what the jobs of a sweep of `evaluate.py` measured into one table."""
    from gpt2x.evaluate.comparison import compare

    compare(sweep_dir, jobs)


def close_tracking(run_dir: Path, status: str) -> None:
    """End the MLflow run that rank 0 could not end."""
    from gpt2x.tracking.mlflow_run import end_abandoned

    end_abandoned(run_dir, status)


RUNS: dict[str, Callable[[Any], None]] = {name: partial(start, name) for name in MODULES}
