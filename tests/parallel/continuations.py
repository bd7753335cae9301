"""`python -m tests.parallel.continuations RUN STOP OUTPUTS CHECKPOINT...`: one layout goes on from many checkpoints.

The layout is that of the run directory RUN; its processes are started once, and go on from each CHECKPOINT to step
STOP, into OUTPUTS/0, OUTPUTS/1, ...
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path

from gpt2x.checkpoint import open_checkpoint
from gpt2x.config.files import load_config
from gpt2x.config.layout import world_size
from gpt2x.runtime import launch
from gpt2x.runtime.console import console
from gpt2x.runtime.exits import guarded, run_and_leave
from gpt2x.runtime.interrupt import deliver_interrupts
from gpt2x.runtime.role import read_role


def go_on(run_dir: Path, stop: int, outputs: Path, checkpoints: list[str]) -> None:
    """As one process of the layout."""
    os.environ.setdefault("GLOG_v", "3")
    role = read_role(os.environ)
    if role.rank:
        console.silence()
    from gpt2x.parallel.mesh import Mesh
    from gpt2x.runtime.device import set_up_device
    from gpt2x.tracking import MetricsLog, NoTracker
    from gpt2x.train.build import build_trainer
    from gpt2x.train.decision import decide

    config = load_config("train", run_dir / "config.yaml")
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, stop_after_steps=stop))
    os.environ.update(launch.timeouts(config.launch, config.hardware.device_target))
    set_up_device(config.hardware)
    mesh = Mesh(config.parallel, config.hardware.device_target, role=role)
    trainer = build_trainer(decide(config, outputs, role), mesh, NoTracker(), 0.1)
    for number, path in enumerate(checkpoints):
        trainer.run_dir = outputs / str(number)
        trainer.metrics = MetricsLog(trainer.run_dir / "metrics.jsonl")
        trainer.restore(open_checkpoint(Path(path)))
        trainer.fit()


def main(run: str, stop: str, outputs: str, *checkpoints: str) -> None:
    """Start the layout's processes, or be one of them."""
    config = load_config("train", Path(run) / "config.yaml")
    if read_role(os.environ).is_worker or world_size(config.parallel) == 1:
        go_on(Path(run), int(stop), Path(outputs), list(checkpoints))
        return
    deliver_interrupts(signal.SIGINT, signal.SIGTERM)
    command = [sys.executable, "-m", "tests.parallel.continuations", run, stop, outputs, *checkpoints]
    launch.launch(command, config, Path(outputs))


if __name__ == "__main__":
    if read_role(os.environ).is_worker:
        launch.end_with_launcher()
        run_and_leave(lambda: main(*sys.argv[1:]))
    sys.exit(guarded(lambda: main(*sys.argv[1:])))
